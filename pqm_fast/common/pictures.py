"""What pictures of losses share: a style for each line, and a file that is written whole or not at all."""

from collections.abc import Iterable
from itertools import cycle, product
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file

MARKERS = "osD^v"  # another one after each eight lines
COLORS = ("#1f6fb4", "#e07b39", "#3c9d5d", "#9256a8", "#b8444f", "#77664f", "#c2a01c", "#4aa5b5")


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The colour and the marker of each line, as arguments of matplotlib's `plot`."""
    styles = cycle(product(MARKERS, COLORS))
    return {name: {"marker": marker, "color": color} for name, (marker, color) in zip(names, styles, strict=False)}


def save(figure: Any, path: Path) -> Path:
    """Writes a figure of matplotlib as a PNG, closes it, and returns the path."""
    import matplotlib.pyplot as plt

    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
