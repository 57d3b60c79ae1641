"""OUT.part: the finished rows of a run, one on each line, so that the same command can continue from there.

If a command has several ranks, rank 0 writes OUT.part, and the others OUT.part-1, OUT.part-2, ...
"""

import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pqm_fast.common.files import is_at, write_all
from pqm_fast.errors import PQMError

SAVE_SECONDS = 2.0  # between flushes to the disk; if the machine fails, rows since the last flush are lost
SHOWN_LINES = 10  # damaged lines that a message lists
SHOWN_CHARACTERS = 300  # longer values of changed inputs are not shown


class Journal:
    """A file of lines, each of them JSON, a tab, a CRC-32 in eight hexadecimal digits and a line feed.

    The first line, the header, holds the inputs of the run: everything that the rows depend on. The rows follow in the
    order in which they were made.

    A run with other inputs must not continue from these rows. The checksum of each row therefore starts from the CRC of
    the header, so rows are known to belong to this run even if the header is damaged. The caller holds the lock on OUT.

    `number`: of the rank that writes this file. Raises PQMError if OUT exists already, or if the file was started with
    other inputs. Writes nothing before `append`.
    """

    def __init__(self, out: Path, inputs: dict[str, Any], number: int = 0):
        if out.exists():
            raise PQMError(f"{out}: exists already; delete it or choose another --out")
        self.path = _part(out, number)
        self.header = json.dumps(inputs).encode()
        self.header_crc = zlib.crc32(self.header)
        self.size, self.lines, self.rows, self.flushed = 0, 0, 0, 0.0
        self.damaged_lines: list[int] = []
        """Numbers, from 1, of the lines that `replay` found damaged."""
        self.file: Any = None
        self.reader: Any = None
        if (stored := _stored_inputs(self.path)) is not None:
            self._check_inputs(stored, json.loads(self.header), "it" if len(part_numbers(out)) == 1 else f"{out}.part*")

    def replay(self, take: Callable[[int, dict[str, Any]], None], quiet: bool = False) -> None:
        """Calls `take` with (byte offset, row) for every intact row, and prints which lines are damaged unless `quiet`.
        Called again, it goes on with the rows that the file's writer has added.

        If `take` raises ValueError, LookupError or TypeError, it does not know the row, which then counts as damaged. A
        last line that a crash cut off will be overwritten.

        Raises PQMError if the header is damaged and no row is known.
        """
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.size)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.lines += 1
                try:
                    if self.lines == 1:
                        _inputs_in(line)
                    else:
                        take(self.size, json.loads(_checked(line, self.header_crc)))
                        self.rows += 1
                except (ValueError, LookupError, TypeError, RecursionError):
                    self.damaged_lines.append(self.lines)
                self.size += len(line)
        if self.damaged_lines == [1] and not self.rows:  # no row can be lost: start over
            self.damaged_lines, self.size, self.lines = [], 0, 0
        elif 1 in self.damaged_lines and not self.rows:
            raise PQMError(
                f"{self.path}: its first line, with the options it was started with, is damaged, and no row belongs to "
                "these options; use the options it was started with, or delete it to start over"
            )
        if self.damaged_lines and not quiet:
            lines = ", ".join(map(str, self.damaged_lines[:SHOWN_LINES]))
            more = ", ..." if len(self.damaged_lines) > SHOWN_LINES else ""
            count = f"{len(self.damaged_lines):,} damaged (line {lines}{more})"
            print(f"{self.path}: {count}: rows are done again, the others kept")

    def append(self, row: dict[str, Any]) -> int:
        """Writes a row and returns its byte offset. From then on the row survives the end of the process. It survives a
        failure of the machine once it is flushed, which happens with the first row that is written SAVE_SECONDS or more
        after the last flush.

        Raises PQMError if the file has been removed, OSError if it cannot be written.
        """
        if self.file is None:
            self.file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", buffering=0)
            self.file.truncate(self.size)
            self.file.seek(self.size)
        if not self.size:
            self._write(self.header, 0)
        offset = self.size
        self._write(json.dumps(row, ensure_ascii=False).encode("utf-8"), self.header_crc)
        if time.monotonic() - self.flushed > SAVE_SECONDS:
            os.fsync(self.file.fileno())
            self.flushed = time.monotonic()
        if not is_at(self.file, self.path):
            raise PQMError(f"{self.path}: was removed while being written; run the command again")
        self.rows += 1
        return offset

    def _write(self, text: bytes, crc: int) -> None:
        line = b"%s\t%08x\n" % (text, zlib.crc32(text, crc))
        write_all(self.file, line)
        self.size += len(line)

    def text(self, offset: int) -> str:
        """The row at a byte offset, in JSON. Raises PQMError if it has changed since it was written."""
        if self.reader is None:
            self.reader = open(self.path, "rb")  # noqa: SIM115 (closed by close())
        self.reader.seek(offset)
        try:
            return _checked(self.reader.readline(), self.header_crc).decode("utf-8")
        except ValueError as error:
            raise PQMError(f"{self.path}: damaged while in use; run the command again") from error

    def row(self, offset: int) -> dict[str, Any]:
        """The row at a byte offset. Raises PQMError as `text` does."""
        return json.loads(self.text(offset))

    def kept(self) -> str:
        """The note that the finished rows are kept; empty if there is none."""
        return kept_note(self.path) if self.rows else ""

    @contextmanager
    def writing(self, kept: Callable[[], str] | None = None) -> Iterator[None]:
        """Closes the files at the end. The message of an error or a signal in the block adds that the finished rows are
        kept, in the words of `kept` (default: of this file)."""
        kept = kept or self.kept
        try:
            yield
        except KeyboardInterrupt as stop:
            stop.args = (continues(note),) if (note := kept()) else ()
            raise
        except OSError as error:
            reason = f"{error.filename or self.path}: {error.strerror or error}"
            raise PQMError(f"{reason}; {note}" if (note := kept()) else reason) from error
        except PQMError as error:
            if note := kept():
                raise PQMError(f"{error}; {note}") from error
            raise
        finally:
            self.close()

    def close(self) -> None:
        for file in (self.file, self.reader):
            if file is not None:
                file.close()
        self.file = self.reader = None

    def remove(self) -> None:
        """Removes the file. Call it once OUT is complete."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _check_inputs(self, stored: dict[str, Any], inputs: dict[str, Any], delete: str) -> None:
        changed = []
        for name, value in inputs.items():
            if stored.get(name) != value:
                values = f"{stored.get(name)!r} then, {value!r} now"
                description = values if len(values) < SHOWN_CHARACTERS else "other files, or other contents"
                changed.append(f"{name} ({description})")
        if changed:
            raise PQMError(
                f"{self.path}: was started with other options: {', '.join(changed)}; delete {delete} to start over"
            )


def kept_note(where: object) -> str:
    return f"what is done is kept in {where}"


def continues(note: str) -> str:
    """The note that rows are kept, for a command that ended in the middle."""
    return f"{note}, and the same command continues from there"


def part_numbers(out: Path) -> list[int]:
    """The numbers of the files that interrupted runs have left: 0 for OUT.part, N for OUT.part-N."""
    names = [path.name for path in out.parent.iterdir()] if out.parent.is_dir() else []
    found = (re.fullmatch(rf"{re.escape(out.name)}\.part(?:-([1-9]\d*))?", name) for name in names)
    return sorted(int(match[1] or 0) for match in found if match)


def stored_inputs(out: Path) -> dict[str, Any] | None:
    """The inputs of the interrupted run that left OUT.part or OUT.part-N; None if there is no such file with an intact
    header."""
    stored = (_stored_inputs(_part(out, number)) for number in part_numbers(out))
    return next((inputs for inputs in stored if inputs is not None), None)


def _stored_inputs(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    with open(path, "rb") as file, suppress(ValueError, RecursionError):
        return _inputs_in(file.readline())
    return None


def _part(out: Path, number: int) -> Path:
    return out.with_name(f"{out.name}.part-{number}" if number else f"{out.name}.part")


def _inputs_in(header_line: bytes) -> dict[str, Any]:
    inputs = json.loads(_checked(header_line, 0))
    if not isinstance(inputs, dict):
        raise ValueError("not an object")
    return inputs


def _checked(line: bytes, crc: int) -> bytes:
    """The JSON of a line. Raises ValueError if the line has changed since it was written."""
    text, _, checksum = line.rstrip(b"\n").rpartition(b"\t")
    if checksum != b"%08x" % zlib.crc32(text, crc):
        raise ValueError("changed since it was written")
    return text
