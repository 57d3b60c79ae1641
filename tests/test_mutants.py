"""Mutants are edits of the code as it is: one that has to be rewritten is found here, not when they are run."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_mutant_can_be_made():
    mutants = runpy.run_path(str(ROOT / "tests" / "mutants" / "run.py"))["mutants"]("")  # checks the old texts
    assert len(mutants) >= 30
    for mutant in mutants:
        paths = [ROOT / word.partition("::")[0] for word in mutant["tests"].split() if word.startswith("tests/")]
        assert paths, mutant["name"]
        assert all(path.exists() for path in paths), mutant["name"]
