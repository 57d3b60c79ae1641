"""docs/evidence/study-tables.md against the stored results that it quotes, and docs/evidence/study.md against it."""

import json
import re
from pathlib import Path

import pytest

from pqm_fast.study.tables import tables

ROOT = Path(__file__).parents[2]


def page(name="study-tables"):
    return (ROOT / "docs" / "evidence" / f"{name}.md").read_text(encoding="utf-8")


def stored_tables(name):
    return tables(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")))


def test_the_page_has_every_table_of_the_stored_result():
    made = stored_tables("study-arithmetic-cpu")
    assert {"labels", "models", "zeta", "policies", "aggregators", "steps"} <= made.keys()
    for name, text in made.items():
        if name != "rates":  # a row for each point: left in the result
            assert text.replace("## ", "### ", 1) in page()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("study-siblings-cpu", {"labels", "policies", "aggregators", "steps", "rates"}),
        ("study-siblings-world11-cpu", {"labels"}),
        ("study-other-losses-cpu", {"labels"}),
    ],
)
def test_the_page_has_the_comparison_of_siblings(name, shown):
    made = stored_tables(name)
    for section in shown:
        heading, figures = made[section].split("\n\n", 1)
        assert figures in page(), heading


@pytest.mark.parametrize("loss", ["rank", "bce", "mse"])
def test_the_page_has_the_labels_up_to_the_first_error(loss):
    labels = stored_tables("study-first-error-cpu")["labels"]
    [row] = [line for line in labels.splitlines() if line.startswith(f"| {loss} |")][:1]
    assert row in page()


def test_the_findings_quote_the_tables():
    rows = re.findall(r"^\| [a-z+-]+ \| \**[+-]?\d.*$", page("study"), re.MULTILINE)
    assert len(rows) >= 9
    assert not [row for row in rows if row not in page()]
