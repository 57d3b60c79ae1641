"""docs/evidence/probe-tables.md against the stored results that it quotes, and docs/evidence/probes.md against it."""

import json
import re
from pathlib import Path

from pqm_benchmarks.fine_tuning.report import table

from pqm_fast.probe_study.document import published, tables

ROOT = Path(__file__).parents[2]


def page(name):
    return (ROOT / "docs" / "evidence" / f"{name}.md").read_text(encoding="utf-8")


def stored(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_page_has_every_table_of_the_stored_result():
    made = tables(stored("probe-study-cpu"))
    assert len(made) == 13
    for section, text in made.items():
        assert text in page("probe-tables"), section


def test_the_page_has_the_fine_tunings_and_the_published_figures():
    assert table(stored("fine-tuning-cpu")) in page("probe-tables")
    assert published() in page("probe-tables")


def test_the_findings_quote_the_tables():
    rows = re.findall(r"^\| .*\d\.\d{3}.*$", page("probes"), re.MULTILINE)
    assert len(rows) >= 10
    assert not [row for row in rows if row not in page("probe-tables")]
