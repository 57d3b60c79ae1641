"""What a study leaves in its folder: results.json, pictures and study.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file, write_json

Results = dict[str, Any]


def write_study(
    folder: Path, results: Results, draw: Callable[[Results, Path], object], document: Callable[[Results], str]
) -> None:
    """Writes the files and prints the text. `draw` writes pictures into the folder, `document` makes the text."""
    write_json(folder / "results.json", results)
    draw(results, folder)
    text = document(results)
    with atomic_file(folder / "study.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
