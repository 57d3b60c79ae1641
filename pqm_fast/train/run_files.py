"""What a command that does not load torch does with a run folder: finds checkpoints, says how to resume, clears up."""

import re
import shlex
import shutil
from pathlib import Path

from pqm_fast.common.lock import locked

CONFIG_FILE = "config.yaml"
LATEST, BEST = "latest", "best"
"""Files beside the checkpoints that hold the name of one."""


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first. One whose writing was interrupted never got its final name, and is
    not listed."""
    entries = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in entries if re.fullmatch(r"step-\d{7}", path.name) and path.is_dir())


def is_trained(folder: Path) -> bool:
    """Whether a run folder holds the finished model. A run that goes on has removed the config of an earlier end."""
    return (folder / "config.json").exists() and any(folder.glob("*.safetensors"))


def resumes(folder: Path) -> bool:
    """Whether a run that is not finished has a checkpoint to go on from. Without one, its folder is removed.

    Raises PQMError if another process is training there.
    """
    if complete_checkpoints(folder / "checkpoints"):
        return True
    if folder.exists():
        with locked(folder, "train", folder=True):
            shutil.rmtree(folder)
    return False


def remove_weights(folder: Path) -> None:
    """Removes the finished model and the checkpoints of a run of which only its results are wanted."""
    for path in (*folder.glob("*.safetensors"), *folder.glob("checkpoints/*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def pointed_at(folder: Path, name: str) -> Path | None:
    """The checkpoint that the file `latest` or `best` in `folder` names; None if there is none."""
    file = folder / name
    path = folder / file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else None
    return path if path in complete_checkpoints(folder) else None


def resume_command(folder: Path, ranks: int = 1) -> str:
    """What to type to resume the run in `folder` in so many processes on one machine."""
    program = ["pqm-fast"] if ranks == 1 else ["torchrun", "--nproc-per-node", str(ranks), "-m", "pqm_fast"]
    return shlex.join([*program, "train", "--config", str(folder / CONFIG_FILE), "--resume"])
