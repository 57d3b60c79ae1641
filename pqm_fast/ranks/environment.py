"""What torchrun, or a program like it, tells a process about itself in the environment."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pqm_fast.errors import PQMError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Environment:
    """A process among those that were started together."""

    rank: int = 0
    world: int = 1
    """How many ranks there are."""
    local_rank: int = 0
    """The number of this rank on its machine."""
    local_world: int = 1
    """How many ranks there are on this machine."""
    launcher: str | None = None
    """A name of the torchrun process, which it keeps when it starts its ranks anew; None without torchrun."""


def read_environment() -> Environment:
    """Raises PQMError for variables that are missing or make no sense."""
    launcher = _launcher()
    if not os.environ.get("WORLD_SIZE") or _number("WORLD_SIZE") == 1:
        return Environment(launcher=launcher)
    if missing := [name for name in VARIABLES if not os.environ.get(name)]:
        verb = "is" if len(missing) == 1 else "are"
        raise PQMError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} {verb} not set; start with torchrun, "
            "or unset WORLD_SIZE to run in one process"
        )
    rank, world, _ = (_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if not 0 <= rank < world:
        raise PQMError(f"RANK is {rank}, and WORLD_SIZE {world}; RANK must be from 0 to WORLD_SIZE - 1")
    return Environment(rank, world, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1), launcher)


def this_machine() -> str:
    """A name that the processes of this machine have in common, and no others: those whose process numbers mean the
    same here."""
    parts = [os.environ.get("GROUP_RANK", ""), os.uname().nodename]
    with suppress(OSError):  # Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _launcher() -> str | None:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    process = os.getppid()
    try:
        started = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # not Linux
        started = ""
    return f"{this_machine()} {process} {started}"


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        raise PQMError(f"{name} is {text!r}, and must be a whole number; start with torchrun") from None
