"""Every option of `pqm-fast export`, with its default and the text that --help shows."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ExportConfig:
    """Write a resumable checkpoint of a run as a model folder, which scores and loads like the finished model."""

    run: str
    """Run folder."""
    out: str
    """Folder to write."""
    step: int | Literal["latest", "best"] = "latest"
    """The checkpoint: the step that it was saved after, the newest, or the one with the lowest held-out loss."""
    save_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Data type of the weights."""
