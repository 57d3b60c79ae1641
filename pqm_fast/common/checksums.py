"""SHA256SUMS in a folder: what its files were when they were written. `sha256sum -c SHA256SUMS` checks it too."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pqm_fast.common.digests import file_digests
from pqm_fast.common.files import sync

SUMS_FILE = "SHA256SUMS"


def sums(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file by its name."""
    files = list(files)
    return dict(zip((file.name for file in files), file_digests(files), strict=True))


def write_sums(folder: Path) -> None:
    """Into `folder`, of every file in it, which are flushed to the disk meanwhile: that takes longer. A list from
    before is replaced."""
    files = [file for file in folder.iterdir() if file.is_file() and file.name != SUMS_FILE]
    with ThreadPoolExecutor() as pool:
        synced = pool.map(sync, files)
        found = sums(files)
        list(synced)  # raises what failed
    lines = [f"{digest}  {name}\n" for name, digest in sorted(found.items())]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")
    sync(folder / SUMS_FILE)


def has_sums(folder: Path) -> bool:
    return (folder / SUMS_FILE).exists()


def _read_sums(folder: Path) -> dict[str, str]:
    """What `write_sums` wrote, by file; ValueError if that is damaged, FileNotFoundError if it is not there."""
    pairs = [line.split("  ", 1) for line in (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()]
    if not pairs or any(len(pair) != 2 or len(pair[0]) != 64 or Path(pair[1]).name != pair[1] for pair in pairs):
        raise ValueError("not a list of checksums")
    return {name: digest for digest, name in pairs}


def find_damage(folder: Path, needed: Iterable[str]) -> str | None:
    """The first file that is not as it was written, and what is wrong with it; None if all are. Those that are `needed`
    must have a checksum."""
    try:
        stored = _read_sums(folder)
    except (OSError, ValueError) as error:
        return f"{SUMS_FILE}: {error.strerror if isinstance(error, OSError) else error}"
    for name in sorted(needed):
        if name not in stored:
            return f"{SUMS_FILE}: {name} is not in it"
    for name in sorted(stored):
        if not (folder / name).is_file():
            return f"{name} is missing (or {SUMS_FILE} is damaged)"
    try:
        found = sums(folder / name for name in stored)
    except OSError as error:
        return f"{Path(error.filename).name if error.filename else folder}: {error.strerror}"
    changed = [name for name in stored if found[name] != stored[name]]
    return f"{changed[0]} or {SUMS_FILE} is not as it was written: the SHA-256 is another one" if changed else None
