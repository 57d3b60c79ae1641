"""Computes the SHA-256 of files. An edit may leave the size and time of a file unchanged, but not its contents."""

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

SETTLED_NANOSECONDS = 100_000_000  # a file that changed more recently is read again


def file_digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. A file that does not change is read once in a process."""
    # SHA-256 and not a faster hash: processors have instructions for it
    status = file.stat()
    # the change time cannot be set back, but it is coarse: another change may follow within its resolution
    if time.time_ns() - status.st_ctime_ns < SETTLED_NANOSECONDS:
        return _read_digest(file)
    return _known_digest(file, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def file_digests(files: Iterable[Path]) -> list[str]:
    """The SHA-256 of several files, computed in parallel threads: hashlib releases the interpreter lock."""
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
    """[name relative to `folder`, SHA-256] of each entry of `files` that is a file, sorted by name."""
    existing = [file for file in sorted(set(files)) if file.is_file()]
    names = (str(file.relative_to(folder)) for file in existing)
    return [list(pair) for pair in zip(names, file_digests(existing), strict=True)]
