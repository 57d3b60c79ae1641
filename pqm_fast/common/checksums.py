"""SHA256SUMS: the checksums of the files in a folder, as written. `sha256sum -c SHA256SUMS` checks them too."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pqm_fast.common.digests import file_digests
from pqm_fast.common.files import sync

SUMS_FILE = "SHA256SUMS"


def sums(files: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of each file, by file name."""
    files = list(files)
    return dict(zip((file.name for file in files), file_digests(files), strict=True))


def write_sums(folder: Path) -> None:
    """Writes the checksums of every file in `folder`, replacing an earlier list. The files are flushed to the
    disk at the same time, which takes longer than the checksums."""
    files = [file for file in folder.iterdir() if file.is_file() and file.name != SUMS_FILE]
    with ThreadPoolExecutor() as pool:
        flushes = pool.map(sync, files)
        digests = sums(files)
        list(flushes)  # raises the error of a flush that failed
    write_list(folder, digests)


def write_list(folder: Path, digests: dict[str, str]) -> None:
    """Writes checksums that are known already, by file name."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")
    sync(folder / SUMS_FILE)


def has_sums(folder: Path) -> bool:
    return (folder / SUMS_FILE).exists()


def read_sums(folder: Path) -> dict[str, str]:
    """The digests that `write_sums` wrote, by file name. Raises ValueError if the list is damaged, FileNotFoundError if
    it is missing."""
    pairs = [line.split("  ", 1) for line in (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()]
    if not pairs or any(len(pair) != 2 or len(pair[0]) != 64 or Path(pair[1]).name != pair[1] for pair in pairs):
        raise ValueError("not a list of checksums")
    return {name: digest for digest, name in pairs}


def find_missing(folder: Path, needed: Iterable[str] = ()) -> str | None:
    """Describes the first file with a checksum that is missing, or what is wrong with the list of them; None if all are
    there. The `needed` files must have a checksum. No file is read but the list."""
    try:
        stored_sums = read_sums(folder)
    except (OSError, ValueError) as error:
        return f"{SUMS_FILE}: {error.strerror if isinstance(error, OSError) else error}"
    for name in sorted(needed):
        if name not in stored_sums:
            return f"{SUMS_FILE}: {name} is not listed"
    for name in sorted(stored_sums):
        if not (folder / name).is_file():
            return f"{name} is missing (or {SUMS_FILE} is damaged)"
    return None


def find_damage(folder: Path, needed: Iterable[str]) -> str | None:
    """Like `find_missing`, but compares the contents of the files, too: describes the first that has changed since it
    was written."""
    if (missing := find_missing(folder, needed)) is not None:
        return missing
    try:
        stored_sums = read_sums(folder)
        current_sums = sums(folder / name for name in stored_sums)
    except OSError as error:
        return f"{Path(error.filename).name if error.filename else folder}: {error.strerror}"
    changed = [name for name in stored_sums if current_sums[name] != stored_sums[name]]
    return f"{changed[0]} or {SUMS_FILE} has changed since it was written: the SHA-256 differs" if changed else None
