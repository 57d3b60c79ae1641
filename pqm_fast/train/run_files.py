"""What a run folder shows to a command that does not load torch: its checkpoints, and the command that resumes it."""

import re
import shlex
from pathlib import Path

CONFIG_FILE = "config.yaml"


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first. One whose writing was interrupted never got its final name, and is
    not listed."""
    entries = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in entries if re.fullmatch(r"step-\d{7}", path.name) and path.is_dir())


def resume_command(folder: Path) -> str:
    """What to type to resume the run in `folder`."""
    return shlex.join(["pqm-fast", "train", "--config", str(folder / CONFIG_FILE), "--resume"])
