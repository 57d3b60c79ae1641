"""OUT.part: what a run has got so far, a line each, so that the same command goes on from there."""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pqm_fast.errors import PQMError
from pqm_fast.files import write_json

SAVE_SECONDS = 2.0  # what a machine that goes down costs at most


class Journal:
    """Rows in the order they came, each with a checksum: JSON, a tab, CRC-32 in eight digits, a line feed.

    `means` is what the rows depend on: a run with other options must not go on from them. It stands in OUT.part.json.
    Whoever makes a Journal holds the lock on OUT.

    Raises PQMError if OUT exists already, or OUT.part was begun with something else. Writes nothing before `append`.
    """

    def __init__(self, out: Path, means: dict[str, Any]):
        if out.exists():
            raise PQMError(f"{out}: exists already; delete it or choose another --out")
        self.path, self.begun_with = _paths(out)
        self.means = json.loads(json.dumps(means))
        self.size, self.saved = 0, 0.0
        self.damaged: list[int] = []
        """Lines, from 1, that `replay` found not to be as they were written."""
        self.file: Any = None
        self.reader: Any = None
        if (before := begun(out)) is not None:
            self._check(before)

    def replay(self, take: Callable[[int, dict[str, Any]], None]) -> None:
        """Calls `take` with (where it stands, row) for every row that is as it was written, and says which are not.

        A `take` that raises ValueError, LookupError or TypeError does not know the row, which then counts as damaged.
        What a crash cut off at the end is written over.
        """
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    take(self.size, json.loads(_checked(line)))
                except (ValueError, LookupError, TypeError, RecursionError):
                    self.damaged.append(number)
                self.size += len(line)
        if self.damaged:
            lines = ", ".join(map(str, self.damaged[:10])) + (", ..." if len(self.damaged) > 10 else "")
            print(f"{self.path}: {len(self.damaged):,} damaged (line {lines}): done again, the others are kept")

    def append(self, row: dict[str, Any]) -> int:
        """Writes a row, which then survives the process, and within SAVE_SECONDS the machine. Returns where it stands.

        Raises PQMError if the file is no longer there, OSError if it cannot be written.
        """
        if self.file is None:
            write_json(self.begun_with, self.means)
            self.file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", buffering=0)
            self.file.truncate(self.size)
            self.file.seek(self.size)
        text = json.dumps(row, ensure_ascii=False).encode("utf-8")
        line = b"%s\t%08x\n" % (text, zlib.crc32(text))
        rest = memoryview(line)
        while rest:
            rest = rest[self.file.write(rest) :]
        if time.monotonic() - self.saved > SAVE_SECONDS:
            os.fsync(self.file.fileno())
            self.saved = time.monotonic()
        if not (self.path.exists() and os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())):
            raise PQMError(f"{self.path}: was removed while being written; run the command again")
        self.size += len(line)
        return self.size - len(line)

    def text(self, place: int) -> str:
        """The row that stands there, in JSON. Raises PQMError if it is no longer what was written."""
        if self.reader is None:
            self.reader = open(self.path, "rb")  # noqa: SIM115 (closed by close())
        self.reader.seek(place)
        try:
            return _checked(self.reader.readline()).decode("utf-8")
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
            stop.args = (f"{kept}, and the same command goes on from there",) if self.size else ()
            raise
        except OSError as error:
            reason = f"{error.filename or self.path}: {error.strerror or error}"
            raise PQMError(f"{reason}; {kept}" if self.size else reason) from error
        except PQMError as error:
            if self.size:
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
        self.begun_with.unlink(missing_ok=True)

    def _check(self, before: dict[str, Any]) -> None:
        changed = []
        for name, now in self.means.items():
            if (then := before.get(name)) != now:
                values = f"{then!r} then, {now!r} now"
                changed.append(f"{name} ({values if len(values) < 300 else 'other files, or other contents'})")
        if changed:
            raise PQMError(f"{self.path}: was begun with other options: {', '.join(changed)}; delete it to start over")


def begun(out: Path) -> dict[str, Any] | None:
    """What `means` was of the interrupted run that OUT.part is of, if there is one. Raises PQMError if that is lost."""
    path, begun_with = _paths(out)
    if not path.exists():
        return None
    try:
        before = json.loads(begun_with.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise PQMError(f"{path}: {begun_with} is damaged ({error}); delete both to start over") from error
    return before


def _paths(out: Path) -> tuple[Path, Path]:
    return out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")


def _checked(line: bytes) -> bytes:
    """The JSON of a line. Raises ValueError if it is not as it was written."""
    text, _, checksum = line.rstrip(b"\n").rpartition(b"\t")
    if checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("not as it was written")
    return text
