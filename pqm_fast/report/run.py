"""`pqm-fast report`: one HTML page about one run or several."""

from dataclasses import dataclass
from pathlib import Path

from pqm_fast.common.files import atomic_file, file_to_write
from pqm_fast.common.options import Text
from pqm_fast.errors import PQMError
from pqm_fast.report.find import find
from pqm_fast.report.page import page
from pqm_fast.report.solutions import choose


@dataclass(frozen=True)
class ReportConfig:
    """One HTML page that needs no network: curves, an ablation table and a viewer of scored solutions."""

    runs: tuple[str, ...]
    """Folders of training runs, of results of `evaluate` or of `demo`, or folders of such folders; files of results
    (`evaluate --out`) or of scored solutions (`score --out`). Given first, they need no --runs. A row of the report is
    a model: files that name one model (`evaluate` and `score` write it into them) are joined, with its training run
    if that is given too. A file that names none belongs to the run whose folder it lies in, else to the run RUN if it
    is called RUN.json or RUN.jsonl. NAME=PATH says of which model a file is, or what to call a run."""
    out: str = "report.html"
    """File to write."""
    title: Text = "pqm-fast report"
    """Heading of the page."""
    solutions: int = 1000
    """Solutions in the page at most, the same number of each run. Of more, half are the most wrong ones, half a random
    sample of the others."""
    seed: int = 0
    """Of the sample."""


def report(config: ReportConfig) -> Path:
    """Writes the page and returns its path.

    Raises:
        PQMError: a path that holds nothing to report, or a damaged file.
    """
    if config.solutions < 0:
        raise PQMError(f"solutions: {config.solutions} was given; it must be 0 or more")
    out = Path(config.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise PQMError(f"{out}: name an .html file to write")
    file_to_write(out)
    runs = find(config.runs)
    made = page(runs, choose(runs, config.solutions, config.seed), config.title)
    with atomic_file(out) as temporary:
        temporary.write_bytes(made)
    return out
