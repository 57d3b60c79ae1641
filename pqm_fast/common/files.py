"""Files appear whole or not at all: write beside, flush to disk, rename."""

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

HELD = "held"  # in a temporary folder: the file that its writer has a lock on, for as long as it lives
LONG = 3600.0  # seconds after which a temporary folder without that file is nobody's


def sync(path: Path) -> None:
    """Flushes a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(file: io.FileIO, data: bytes) -> None:
    """All of `data`, of which an unbuffered file on a disk that is nearly full takes a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def is_at(file: io.FileIO, path: Path) -> bool:
    """Whether an open file is still the one at `path`, neither removed nor replaced."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; on success that file is flushed and takes the name `path`, on an error it goes. Where
    `path` is a link, the file that it leads to is replaced.

    Raises OSError, with `path` in it, for what cannot be written, and PQMError as `file_to_write`.
    """
    path = file_to_write(path)
    with temporary_beside(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


def file_to_write(path: Path) -> Path:
    """`path`, or what it leads to if it is a link. For those who write late, to ask first.

    Raises PQMError where no file can be: a folder, a device or a pipe is there, or it would lie below a file.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_dir():
        raise PQMError(f"{path}: is a folder; name a file to write")
    if target.exists() and not target.is_file():
        raise PQMError(f"{path}: is no regular file but a device, a pipe or a socket; name another file to write")
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir():
        raise PQMError(f"{path}: {above} is a file, so nothing can be below it; name another file to write")
    return target


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder that does not exist yet."""
    with temporary_beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        os.rename(temporary, path)
        sync(path.parent)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yields a free path on the file system of `path`, in a folder that nobody else can guess or write to.

    Process numbers would be no name for it: two containers that share a folder may have the same. The folder is gone at
    the end; if its writer is killed, the next writer of `path` removes it, or `remove_leftovers`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
    held = os.open(folder / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # without locks (some file systems) it is never taken for a left-over
            fcntl.flock(held, fcntl.LOCK_EX)
        os.rename(folder / "new", folder / HELD)  # there it is locked from the first
        yield folder / path.name
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(folder):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        os.close(held)
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, name: str | None = None) -> list[str]:
    """Removes what killed writers left in `folder`, of one name or of all, and returns what that was called. What a
    living one is at stays, and so does what is no folder.

    A writer is dead if the lock on its file is free. Between making the folder and the lock, for microseconds, there is
    none: such a folder is left for an hour.
    """
    removed = []
    pattern = rf"\.{'.+' if name is None else re.escape(name)}\.tmp-\w{{8}}"
    for found in list(folder.iterdir()) if folder.is_dir() else []:
        if re.fullmatch(pattern, found.name) and _is_abandoned(found):
            shutil.rmtree(found, ignore_errors=True)  # refuses links
            if not os.path.lexists(found):
                removed.append(found.name)
    return sorted(removed)


def write_json(path: Path, value: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_abandoned(folder: Path) -> bool:
    try:
        held = os.open(folder / HELD, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        with suppress(FileNotFoundError):
            return time.time() - folder.lstat().st_mtime > LONG
        return False
    except OSError:  # another user's
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(held)
    return True
