"""A run that was killed, made from one that has ended."""

import shutil
from pathlib import Path


def cut_off(run: Path, step: int) -> None:
    """Takes from a finished run what was written after the checkpoint of `step`, except for lines of metrics."""
    for path in run.iterdir():
        if path.name in ("config.json", "metrics.json", "training.png") or path.suffix == ".safetensors":
            path.unlink()
    for checkpoint in (run / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    assert (run / "checkpoints" / f"step-{step:07d}").exists()
