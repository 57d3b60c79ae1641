"""OUT.part: what a run has got so far, a line each, so that the same command goes on from there."""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pqm_fast.common.files import is_at, write_all
from pqm_fast.errors import PQMError

SAVE_SECONDS = 2.0  # between flushes to the disk; a machine that goes down loses the rows since the last one


class Journal:
    """Lines with a checksum each: JSON, a tab, CRC-32 in eight digits, a line feed. The first is `means`, what the rows
    depend on; then come the rows, in the order they were made.

    A run with other options must not go on from them. The CRC of `means` begins that of each row, so that rows are
    known to be of this run also where the first line is damaged. Whoever makes a Journal holds the lock on OUT.

    Raises PQMError if OUT exists already, or OUT.part was begun with something else. Writes nothing before `append`.
    """

    def __init__(self, out: Path, means: dict[str, Any]):
        if out.exists():
            raise PQMError(f"{out}: exists already; delete it or choose another --out")
        self.path = _part(out)
        self.first = json.dumps(means).encode()
        self.seed = zlib.crc32(self.first)
        self.size, self.rows, self.saved = 0, 0, 0.0
        self.damaged: list[int] = []
        """Lines, from 1, that `replay` found not to be as they were written."""
        self.file: Any = None
        self.reader: Any = None
        if (before := begun(out)) is not None:
            self._check(before, json.loads(self.first))

    def replay(self, take: Callable[[int, dict[str, Any]], None]) -> None:
        """Calls `take` with (where it stands, row) for every row that is as it was written, and says which are not.

        A `take` that raises ValueError, LookupError or TypeError does not know the row, which then counts as damaged.
        What a crash cut off at the end is written over. Raises PQMError if no row is known and the first line is lost.
        """
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    if number == 1:
                        _means_of(line)
                    else:
                        take(self.size, json.loads(_checked(line, self.seed)))
                        self.rows += 1
                except (ValueError, LookupError, TypeError, RecursionError):
                    self.damaged.append(number)
                self.size += len(line)
        if self.damaged == [1] and not self.rows:  # nothing was begun
            self.damaged, self.size = [], 0
        elif 1 in self.damaged and not self.rows:
            raise PQMError(
                f"{self.path}: its first line, of what it was begun with, is damaged, and no row is of these options; "
                "give those that it was begun with, or delete it to start over"
            )
        if self.damaged:
            lines = ", ".join(map(str, self.damaged[:10])) + (", ..." if len(self.damaged) > 10 else "")
            print(f"{self.path}: {len(self.damaged):,} damaged (line {lines}): rows are done again, the others kept")

    def append(self, row: dict[str, Any]) -> int:
        """Writes a row and returns where it stands. It survives the process from then on, and the machine once it is
        flushed, with the first row that is written SAVE_SECONDS or more after the last flush.

        Raises PQMError if the file is no longer there, OSError if it cannot be written.
        """
        if self.file is None:
            self.file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", buffering=0)
            self.file.truncate(self.size)
            self.file.seek(self.size)
        if not self.size:
            self._write(self.first, 0)
        place = self.size
        self._write(json.dumps(row, ensure_ascii=False).encode("utf-8"), self.seed)
        if time.monotonic() - self.saved > SAVE_SECONDS:
            os.fsync(self.file.fileno())
            self.saved = time.monotonic()
        if not is_at(self.file, self.path):
            raise PQMError(f"{self.path}: was removed while being written; run the command again")
        self.rows += 1
        return place

    def _write(self, text: bytes, seed: int) -> None:
        line = b"%s\t%08x\n" % (text, zlib.crc32(text, seed))
        write_all(self.file, line)
        self.size += len(line)

    def text(self, place: int) -> str:
        """The row that stands there, in JSON. Raises PQMError if it is no longer what was written."""
        if self.reader is None:
            self.reader = open(self.path, "rb")  # noqa: SIM115 (closed by close())
        self.reader.seek(place)
        try:
            return _checked(self.reader.readline(), self.seed).decode("utf-8")
        except ValueError as error:
            raise PQMError(f"{self.path}: damaged while in use; run the command again") from error

    def row(self, place: int) -> dict[str, Any]:
        """The row that stands there."""
        return json.loads(self.text(place))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """An error within, or a signal, says that nothing is lost."""
        kept = f"what is done is kept in {self.path}"
        try:
            yield
        except KeyboardInterrupt as stop:
            stop.args = (f"{kept}, and the same command goes on from there",) if self.rows else ()
            raise
        except OSError as error:
            reason = f"{error.filename or self.path}: {error.strerror or error}"
            raise PQMError(f"{reason}; {kept}" if self.rows else reason) from error
        except PQMError as error:
            if self.rows:
                raise PQMError(f"{error}; {kept}") from error
            raise
        finally:
            self.close()

    def close(self) -> None:
        for file in (self.file, self.reader):
            if file is not None:
                file.close()

    def remove(self) -> None:
        """Once OUT holds everything."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _check(self, before: dict[str, Any], means: dict[str, Any]) -> None:
        changed = []
        for name, now in means.items():
            if (then := before.get(name)) != now:
                values = f"{then!r} then, {now!r} now"
                changed.append(f"{name} ({values if len(values) < 300 else 'other files, or other contents'})")
        if changed:
            raise PQMError(f"{self.path}: was begun with other options: {', '.join(changed)}; delete it to start over")


def begun(out: Path) -> dict[str, Any] | None:
    """What `means` was of the interrupted run that OUT.part is of; None if there is none, or that line is damaged."""
    path = _part(out)
    if not path.exists():
        return None
    with open(path, "rb") as file, suppress(ValueError, RecursionError):
        return _means_of(file.readline())
    return None


def _part(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def _means_of(line: bytes) -> dict[str, Any]:
    found = json.loads(_checked(line, 0))
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _checked(line: bytes, seed: int) -> bytes:
    """The JSON of a line. Raises ValueError if it is not as it was written."""
    text, _, checksum = line.rstrip(b"\n").rpartition(b"\t")
    if checksum != b"%08x" % zlib.crc32(text, seed):
        raise ValueError("not as it was written")
    return text
