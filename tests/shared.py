"""Where real data for tests lies, if it is there: beside the repository."""

from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
