"""Publishes a run of `gpu` in the repository: stored files, pictures, and the section in the README."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pqm_benchmarks.comparison.report import Results, merge
from pqm_benchmarks.gpu.stages import LISTS
from pqm_benchmarks.gpu.summary import heading, targets
from pqm_benchmarks.kernels import pictures
from pqm_benchmarks.score import picture as score_picture
from pqm_benchmarks.shared.targets import TARGET_DEVICE
from pqm_benchmarks.train import picture as train_picture
from pqm_fast.common.files import atomic_file
from pqm_fast.errors import PQMError

STORED = Path("benchmarks/results")
IMAGES = Path("docs/images")
BEGIN, END = "<!-- gpu: written by `python -m pqm_benchmarks publish` -->", "<!-- /gpu -->"
NOTHING = (
    "**Nothing has run on a GPU yet**, so no speed figure stands here: "
    "[docs/gpu-status.md](docs/gpu-status.md) says what has to be run."
)
Summary = list[dict[str, Any]]


def publish(folder: Path, root: Path) -> str:
    """Copies the run in `folder` into the checkout `root`, draws its pictures, and rewrites the README's section from
    all runs that are stored there. Returns that section.

    Raises:
        PQMError: `folder` holds no run, or one that must not be shown (on a CPU, or on a card with wrong results); or
            `root` holds no README with the marks.
    """
    summary = _read(folder)
    checked = [row for row in summary if row["name"] == "check"]
    if not checked or checked[0]["figures"].get("device") != "cuda":
        raise PQMError(f"{folder}: not measured on a GPU (its stage check says so); nothing is published")
    if checked[0]["status"] != "passed":
        raise PQMError(f"{folder}: the stage check {checked[0]['status']}: {checked[0]['why']}; nothing is published")
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if not (BEGIN in text and END in text.partition(BEGIN)[2]):
        raise PQMError(f"{readme}: has no place for the figures, from {BEGIN} to {END}")
    stored, images = root / STORED / _name(summary), root / IMAGES
    with tempfile.TemporaryDirectory() as temporary:
        drawn = _draw(folder, Path(temporary))  # before anything is written, because it may fail
        shutil.rmtree(stored, ignore_errors=True)  # an earlier run on a card of this type
        for old in images.glob(f"{stored.name}-*.png"):
            old.unlink()
        stored.mkdir(parents=True)
        images.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.glob("*.json")):
            shutil.copy(file, stored)
        for picture in drawn:
            shutil.copy(picture, images / f"{stored.name}-{picture.name}")
    section = written(root)
    before, _, rest = text.partition(BEGIN)
    with atomic_file(readme) as temporary:
        whole = f"{before}{BEGIN}\n\n{section}\n\n{END}{rest.partition(END)[2]}"
        temporary.write_text(whole, encoding="utf-8")
    return section


def written(root: Path) -> str:
    """The README's section in Markdown, from the runs that are stored in `root`."""
    runs = [_section(file.parent, root) for file in sorted((root / STORED).glob("gpu-*/summary.json"))]
    return "\n\n".join(runs) or NOTHING


def _section(stored: Path, root: Path) -> str:
    summary = _read(stored)
    device, _, versions = heading(summary)[0].partition("; ")
    lines = [
        f"Measured on one **{device}** ({versions}; [stored]({stored.relative_to(root).as_posix()})). "
        f"Targets are for one {TARGET_DEVICE}, and judged there.",
        "",
        "| | target | measured | |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in targets(summary)),
        "",
        *(f"- {row['name']}: {row['status']}{_more(row)}" for row in summary),
    ]
    images = sorted((root / IMAGES).glob(f"{stored.name}-*.png"))
    lines += ["", *(f"![{image.stem}]({image.relative_to(root).as_posix()})" for image in images)] if images else []
    return "\n".join(lines)


def _more(row: dict[str, Any]) -> str:
    left_out = (f"without {case} ({why})" for case, why in row["figures"].get("left_out", {}).items())
    parts = filter(None, (row["figures"].get("headline"), row["why"], *left_out))
    more = "; ".join(" ".join(part.split()) for part in parts)
    return f"; {more}" if more else ""


def _name(summary: Summary) -> str:
    """The name of the folder: the card, and the list of stages unless it is the first."""
    device = next(row["figures"]["environment"]["device"] for row in summary if "environment" in row["figures"])
    card = re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia ")).strip("-")
    names = {row["name"] for row in summary}
    [first, *others] = LISTS
    lists = [name for name in others if names & ({s.name for s in LISTS[name]} - {s.name for s in LISTS[first]})]
    return "-".join(["gpu", card, *lists])


def _draw(folder: Path, pictures_folder: Path) -> list[Path]:
    """Draws the pictures of all measurements in `folder`. Returns their paths."""
    for draw, results in _drawings(folder):
        if results["records"]:
            draw(results, pictures_folder)
    return sorted(pictures_folder.iterdir())


def _drawings(folder: Path) -> Iterator[tuple[Callable[[Results, Path], Any], Results]]:
    def load(pattern: str) -> dict[str, Results]:
        return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(pattern))}

    for results in load("kernels.json").values():
        yield pictures.draw, results
    for draw, files in ((train_picture.draw, load("train-*.json")), (score_picture.draw, load("score-*.json"))):
        if files:
            yield draw, merge(files)


def _read(folder: Path) -> Summary:
    file = folder / "summary.json"
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        for row in summary:
            row["name"], row["status"], row["why"], row["figures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PQMError(f"{file}: no summary of `python -m pqm_benchmarks gpu` ({error!r})") from error
    return summary
