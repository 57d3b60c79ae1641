"""Options of trainings that take seconds."""

from pathlib import Path
from typing import Any

from pqm_fast.data.encode import Template


def options_in(folder: Path) -> dict[str, Any]:
    """Of a training on the CPU with the model in `folder / "model"` and the records of `folder / "data.jsonl"`."""
    return {
        "model": str(folder / "model"),
        "data": (str(folder / "data.jsonl"),),
        "micro_batch_tokens": 128,
        "max_length": 64,
        "log_every": 1,
        "progress": False,
        "cache_dir": str(folder / "cache"),
        "device": "cpu",
        "template": Template(step_token="last"),
    }
