"""docs/study.md against the stored results that it quotes."""

import json
from pathlib import Path

import pytest

from pqm_fast.study.tables import tables

ROOT = Path(__file__).parents[2]


def test_the_page_has_every_table_of_the_stored_result():
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    made = tables(json.loads((ROOT / "benchmarks/results/study-arithmetic-cpu.json").read_text(encoding="utf-8")))
    assert {"labels", "models", "zeta", "policies", "aggregators", "steps"} <= made.keys()
    for name, text in made.items():
        if name != "rates":  # a row for each point: left in the result
            assert text.replace("## ", "### ", 1) in page


@pytest.mark.parametrize("loss", ["rank", "bce", "mse"])
def test_the_page_has_the_labels_up_to_the_first_error(loss):
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    stored = json.loads((ROOT / "benchmarks/results/study-first-error-cpu.json").read_text(encoding="utf-8"))
    [row] = [line for line in tables(stored)["labels"].splitlines() if line.startswith(f"| {loss} |")][:1]
    assert row in page
