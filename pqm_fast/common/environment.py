"""Describes the environment of a measurement: device, versions and commit, stored beside the results."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COMMIT = "PQM_FAST_COMMIT"
"""The environment variable that names the commit if the files have no git history."""


def describe() -> dict[str, Any]:
    """The device, versions and the commit. The commit comes from PQM_FAST_COMMIT in the environment or else from the
    git checkout, with a `+` if files differ from it."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return {
        "device": device,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("pqm-fast", "torch", "transformers", "triton")},
        "commit": os.environ.get(COMMIT) or _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed wheel, or no git
