"""Files appear whole or not at all: they are written under a temporary name, flushed to the disk and renamed."""

import fcntl
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pqm_fast.errors import PQMError

LOCK_FILE = "held"  # in a temporary folder: its writer holds a lock on this file for as long as it lives
ABANDONED_SECONDS = 3600.0  # the age at which a temporary folder without that file is abandoned


def sync(path: Path) -> None:
    """Flushes a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(file: io.FileIO, data: bytes) -> None:
    """Writes all of `data`. A single write to an unbuffered file may stop early when the disk is nearly full."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[file.write(remaining) :]


def is_at(file: io.FileIO, path: Path) -> bool:
    """Whether an open file is still the one at `path`, neither removed nor replaced."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to. On success that file is flushed and renamed to `path`; on an error it is removed. If
    `path` is a link, the file it points to is replaced.

    Raises OSError, naming `path`, if the file cannot be written, and PQMError as `file_to_write` does.
    """
    path = file_to_write(path)
    with temporary_beside(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


def file_to_write(path: Path) -> Path:
    """Returns `path`, or the target if it is a link. Commands that write only at their end call this first.

    Raises PQMError if no file can be written there: it is a folder, a device or a pipe, or would lie below a file.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_dir():
        raise PQMError(f"{path}: is a folder; name a file to write")
    if target.exists() and not target.is_file():
        raise PQMError(f"{path}: is not a regular file but a device, a pipe or a socket; name another file to write")
    nearest_parent = next(parent for parent in target.absolute().parents if parent.exists())
    if not nearest_parent.is_dir():
        raise PQMError(f"{path}: {nearest_parent} is a file, so nothing can be below it; name another file to write")
    return target


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like `atomic_file`, for a folder that does not exist yet."""
    with temporary_beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        os.rename(temporary, path)
        sync(path.parent)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yields a free path on the file system of `path`, in a private folder whose name cannot be guessed.

    (Process numbers would not be unique: processes in two containers that share a folder may have the same one.) The
    folder is removed at the end. If its writer is killed, the next writer of `path` or `remove_leftovers` removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
    lock = os.open(folder / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # on file systems without locks the folder never counts as left over
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(folder / "new", folder / LOCK_FILE)  # so the lock file is locked as soon as it has its name
        yield folder / path.name
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(folder):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, name: str | None = None) -> list[str]:
    """Removes the temporary folders that killed writers left in `folder`, for one file name or for all, and returns
    their names. Those of living writers stay.

    A writer is dead if the lock on its file is free. The file does not exist for some microseconds, between making
    the folder and the lock, so a folder without it stays for an hour.
    """
    removed = []
    pattern = rf"\.{'.+' if name is None else re.escape(name)}\.tmp-\w{{8}}"
    for entry in list(folder.iterdir()) if folder.is_dir() else []:
        if re.fullmatch(pattern, entry.name) and _is_abandoned(entry):
            shutil.rmtree(entry, ignore_errors=True)  # refuses links
            if not os.path.lexists(entry):
                removed.append(entry.name)
    return sorted(removed)


def write_json(path: Path, value: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises PQMError for a file that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PQMError(f"{path}: damaged ({error}); delete it, or put back a copy") from error


def _is_abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        with suppress(FileNotFoundError):
            return time.time() - folder.lstat().st_mtime > ABANDONED_SECONDS
        return False
    except OSError:  # it belongs to another user
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
