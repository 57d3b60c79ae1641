"""`pqm-fast report`: runs and solutions from files, then one HTML page about them."""

from dataclasses import dataclass
from pathlib import Path

from pqm_fast.common.files import atomic_file, file_to_write
from pqm_fast.common.options import Text
from pqm_fast.errors import PQMError
from pqm_fast.report.page import page
from pqm_fast.report.runs import find_runs
from pqm_fast.report.solutions import choose_solutions


@dataclass(frozen=True)
class ReportConfig:
    """One HTML page that needs no network: curves, an ablation table and a viewer of scored solutions."""

    runs: tuple[str, ...]
    """Folders of training runs, of results of `evaluate` or of `demo`, or folders of such folders; files of results
    (`evaluate --out`) or of scored solutions (`score --out`). These paths can come first, without --runs. A row of the
    report is a model: files that name the same model (`evaluate` and `score` write it into them) are joined, also with
    the training run of that model if it is among the paths. A file that names no model belongs to the run whose folder
    it is in, else to the run RUN if it is called RUN.json or RUN.jsonl. NAME=PATH names a run, or the run that a file
    belongs to."""
    out: str = "report.html"
    """HTML file to write."""
    title: Text = "pqm-fast report"
    """Heading of the page."""
    solutions: int = 1000
    """Largest number of solutions in the page, with equal shares for all runs. If a run has more, half of its share are
    the most wrong ones and half a random sample of the others."""
    seed: int = 0
    """Seed of the random sample."""
    by: Text = "error_type"
    """Field of the records to filter the solutions by. The random sample has as many of each value as there are."""


def report(config: ReportConfig) -> Path:
    """Writes the page and returns its path.

    Raises:
        PQMError: a path holds nothing to report, a file is damaged, or an option has a value that cannot be used.
    """
    if config.solutions < 0:
        raise PQMError(f"solutions: {config.solutions} was given; it must be 0 or more")
    out = Path(config.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise PQMError(f"{out}: name an .html file to write")
    file_to_write(out)
    runs = find_runs(config.runs)
    html = page(runs, choose_solutions(runs, config.solutions, config.seed, config.by), config.title)
    with atomic_file(out) as temporary:
        temporary.write_bytes(html)
    return out
