"""One writer at a time: a lock on a run folder or an output file, which the system releases when its holder dies."""

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pqm_fast.common.files import file_to_write
from pqm_fast.errors import PQMError

LOCK_NAME = ".lock"
SECOND_TRY = 0.05  # seconds


@dataclass(frozen=True)
class Holder:
    """The process that wrote its name into a lock file."""

    what: str
    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"`pqm-fast {self.what}` (process {self.pid} on {self.host}, since {self.since})"


@dataclass(frozen=True)
class LockFile:
    """A lock file, as another process sees it."""

    held: bool | None
    """Whether a process holds the lock; None if the file system has no locks."""
    holder: Holder | None
    """None if no name is in the file (yet)."""


@contextmanager
def locked(path: Path, command: str, *, folder: bool = False) -> Iterator[None]:
    """Holds the lock on `path` for `command`, which writes there.

    The lock is a file beside `path`, or inside it if it is a folder, so every machine and container that sees `path`
    sees the lock too. At the end the file is removed, and so are folders that were made for it and are still empty. A
    killed process leaves a file without a lock on it, which the next process takes over.

    Raises PQMError if another process holds the lock (the message names it), or if something else is in the place of
    `path`.
    """
    if not folder:
        file_to_write(path)
    file = path / LOCK_NAME if folder else path.with_name(f".{path.name}{LOCK_NAME}")
    new_folders = _make_folder(file.parent)
    try:
        handle = _acquire(file, path, command)
        try:
            yield
        finally:
            with suppress(OSError):  # the folder may have been removed together with the lock
                if os.path.samestat(os.fstat(handle), os.stat(file, follow_symlinks=False)):
                    file.unlink()
            os.close(handle)
    finally:
        with suppress(OSError):  # a folder that is not empty stays
            for parent in new_folders:
                parent.rmdir()


def look_at_lock(folder: Path) -> LockFile | None:
    """Who holds the lock in `folder`, without taking part: nothing is written. None if there is no lock file, or none
    that may be read."""
    try:
        handle = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        held: bool | None
        try:
            # The only way to ask is to take a shared lock and release it at once. A command that wants the lock in that
            # moment tries a second time (`_lock`); one that has it does not notice.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(handle, fcntl.LOCK_UN)
            held = False
        except BlockingIOError:
            held = True
        except OSError:
            held = None
        return LockFile(held, _holder(handle))
    finally:
        os.close(handle)


def is_empty(folder: Path, apart_from: Sequence[str] = ()) -> bool:
    """Whether a folder is missing, or contains nothing but perhaps the lock and what is named."""
    return not folder.exists() or all(path.name in (LOCK_NAME, *apart_from) for path in folder.iterdir())


def _make_folder(folder: Path) -> list[Path]:
    """Makes a folder with its parents. Returns those that did not exist, the deepest first."""
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PQMError(f"{folder}: is a file, or below one; choose another --out") from None
    return new_folders


def _acquire(file: Path, path: Path, command: str) -> int:
    """Returns the handle of the locked file. Raises PQMError if another process holds the lock."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            _lock(handle)
        except BlockingIOError:
            holder = _holder(handle) or "another process"  # it has not written its name yet
            os.close(handle)
            raise PQMError(f"{path}: {holder} writes there; wait for it, or choose another --out") from None
        except OSError as error:  # a file system without locks
            print(
                f"{path}: no lock could be taken here ({error.strerror}); make sure that nothing else writes there",
                file=sys.stderr,
            )
        # the previous holder may have removed the file after we opened it and before we locked it
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file, follow_symlinks=False)):
                break
        os.close(handle)
    since = f"{datetime.now():%F %T}"
    this_process = {"what": command, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
    with suppress(OSError):  # on a full disk the lock still holds, without naming us
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(this_process).encode(), 0)
    return handle


def _lock(handle: int) -> None:
    """Raises BlockingIOError if another process holds the lock, and still holds it a moment later: `look_at_lock` lets
    it go at once."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(SECOND_TRY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(handle: int) -> Holder | None:
    try:
        holder = json.loads(os.pread(handle, 1000, 0))
        return Holder(str(holder["what"]), int(holder["pid"]), str(holder["host"]), str(holder["since"]))
    except (ValueError, LookupError, TypeError):
        return None
