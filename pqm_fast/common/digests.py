"""SHA-256 of files: size and time survive an edit, the contents do not."""

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

SETTLED = 100_000_000  # nanoseconds


def file_digest(file: Path) -> str:
    """SHA-256, for which processors have instructions. A file that is as it was is read once in a process."""
    found = file.stat()
    # the time of the last change, which nobody can put back, is coarse: soon after one there may be another in it
    if time.time_ns() - found.st_ctime_ns < SETTLED:
        return _read_digest(file)
    return _known_digest(file, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def file_digests(files: Iterable[Path]) -> list[str]:
    """The same of several, side by side: hashlib lets other threads run."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(file_digest, files))


@lru_cache(4096)
def _known_digest(file: Path, *state: int) -> str:
    return _read_digest(file)


def _read_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as data:
        while block := data.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_digests(folder: Path, files: Iterable[Path]) -> list[list[str]]:
    found = [file for file in sorted(set(files)) if file.is_file()]
    names = (str(file.relative_to(folder)) for file in found)
    return [list(pair) for pair in zip(names, file_digests(found), strict=True)]
