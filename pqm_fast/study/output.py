"""What a study leaves in its folder: results.json, pictures and a page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file, write_json

Results = dict[str, Any]


def write_study(
    folder: Path,
    results: Results,
    draw: Callable[[Results, Path], object],
    document: Callable[[Results], str],
    page: str = "study.md",
) -> None:
    """Writes the files and prints the page. `draw` writes pictures into the folder, `document` makes the text of
    `page`."""
    write_json(folder / "results.json", results)
    draw(results, folder)
    text = document(results)
    with atomic_file(folder / page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
