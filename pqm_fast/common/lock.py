"""One writer at a time: a lock on a run folder or an output file, which the system lets go when its holder dies."""

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pqm_fast.common.files import file_to_write
from pqm_fast.errors import PQMError

NAME = ".lock"


@contextmanager
def locked(path: Path, what: str, *, folder: bool = False) -> Iterator[None]:
    """Holds the lock on `path` for `what`, the command that writes there.

    The lock is a file beside `path`, or in it where it is a folder: whoever sees the one sees the other, on whatever
    machine or in whatever container. It is gone at the end, and so are folders that were made for it alone. What a
    killed process leaves is a file that nobody holds, and the next one takes it.

    Raises:
        PQMError: another process holds it, which the message names; or `path` cannot be there, since something else is.
    """
    if not folder:
        file_to_write(path)
    file = path / NAME if folder else path.with_name(f".{path.name}{NAME}")
    made = _make(file.parent)
    try:
        handle = _take(file, path, what)
        try:
            yield
        finally:
            with suppress(OSError):  # the folder may be gone by now, lock and all
                if os.path.samestat(os.fstat(handle), os.stat(file, follow_symlinks=False)):
                    file.unlink()
            os.close(handle)
    finally:
        with suppress(OSError):  # one that something was written into stays
            for one in made:
                one.rmdir()


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder, or no folder there, but perhaps the lock on it."""
    return not folder.exists() or all(path.name == NAME for path in folder.iterdir())


def _make(folder: Path) -> list[Path]:
    """Makes a folder with its parents. Returns those that were not there, the deepest first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PQMError(f"{folder}: is a file, or below one; choose another --out") from None
    return missing


def _take(file: Path, path: Path, what: str) -> int:
    """The open file, locked. Raises PQMError if another process has it."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _holder(handle)
            os.close(handle)
            raise PQMError(f"{path}: {other} writes there; wait for it, or choose another --out") from None
        except OSError as error:  # a file system without locks
            print(
                f"{path}: no lock could be taken here ({error.strerror}); see to it that nothing else writes there",
                file=sys.stderr,
            )
        # the holder before may have removed the file between our opening and locking it
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file, follow_symlinks=False)):
                break
        os.close(handle)
    holder = {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%F %T}"}
    with suppress(OSError):  # on a full disk the lock holds all the same, without a name
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)
    return handle


def _holder(handle: int) -> str:
    try:
        found = json.loads(os.pread(handle, 1000, 0))
        return f"`pqm-fast {found['what']}` (process {found['pid']} on {found['host']}, since {found['since']})"
    except (ValueError, LookupError, TypeError):  # it has the lock, and has not written who it is yet
        return "another process"
