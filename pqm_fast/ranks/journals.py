"""The output of a command on several ranks: rank 0 holds the lock, each rank writes a journal, rank 0 the file itself.

A record is done by one rank, which writes its row. Before that, every rank has read all journals, those of an earlier
run on another number of ranks too, so nothing is done twice.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pqm_fast.common.journal import Journal, continues, kept_note, part_numbers
from pqm_fast.common.lock import locked
from pqm_fast.errors import PQMError
from pqm_fast.ranks.group import Ranks

OFFSET_BITS = 40  # a place is the number of a file and, in so many bits, an offset in it

Take = Callable[[int, dict[str, Any]], None]


@contextmanager
def locked_by_first(path: Path, command: str, ranks: Ranks) -> Iterator[None]:
    """Rank 0 holds the lock on `path`, and the other ranks go on once it does. Raises PQMError as `locked` does."""
    with locked(path, command) if ranks.first else nullcontext():
        ranks.barrier()
        yield


class Journals:
    """The journals of a run beside OUT. All ranks construct it, `replay` it and `collect` it together.

    Raises PQMError if OUT exists already, or if one of the files was started with other inputs.
    """

    def __init__(self, out: Path, inputs: dict[str, Any], ranks: Ranks):
        self.out, self.ranks = out, ranks
        numbers = sorted({*range(ranks.world), *part_numbers(out)})
        self.files = {number: Journal(out, inputs, number) for number in numbers}
        self.own = self.files[ranks.rank]
        ranks.say_when_lost(lambda: continues(self._kept() or "nothing is done yet"))

    def replay(self, take: Take) -> None:
        """Calls `take` with (place, row) for every intact row, as `Journal.replay` does for one file."""
        self.take = take
        for number in self.files:
            self._read(number, quiet=not self.ranks.first)
        self.ranks.barrier()  # nobody writes before all have read

    def append(self, row: dict[str, Any]) -> int:
        """Writes a row of this rank and returns its place. Raises what `Journal.append` does."""
        return _place(self.ranks.rank, self.own.append(row))

    def collect(self) -> None:
        """Waits until each rank has written its rows. Then rank 0 takes those of the other ranks, as in `replay`.

        Raises PQMError if one of them has changed since it was written.
        """
        self.own.close()
        rows = self.ranks.gather(self.own.rows)
        if not self.ranks.first:
            return
        for number in range(1, self.ranks.world):
            self._read(number, quiet=True)
            if self.files[number].rows != rows[number]:
                raise PQMError(f"{self.files[number].path}: damaged while in use; run the command again")

    def text(self, place: int) -> str:
        """The row at a place, in JSON. Raises PQMError if it has changed since it was written."""
        return self.files[place >> OFFSET_BITS].text(place & ((1 << OFFSET_BITS) - 1))

    def row(self, place: int) -> dict[str, Any]:
        """The row at a place. Raises PQMError as `text` does."""
        return self.files[place >> OFFSET_BITS].row(place & ((1 << OFFSET_BITS) - 1))

    def writing(self) -> AbstractContextManager[None]:
        """As `Journal.writing`: a message of an error or a signal in the block adds that the rows of all are kept."""
        return self.own.writing(self._kept)

    def remove(self) -> None:
        """Removes the files. Rank 0 calls it once OUT is complete."""
        for journal in self.files.values():
            journal.remove()

    def _read(self, number: int, quiet: bool) -> None:
        self.files[number].replay(lambda offset, row: self.take(_place(number, offset), row), quiet)

    def _kept(self) -> str:
        """The note that finished rows of this rank or another are kept; empty if there is none."""
        paths = [journal.path for journal in self.files.values() if journal.rows or self._has_grown(journal)]
        if not paths:
            return ""
        return kept_note(paths[0] if len(paths) == 1 else f"{self.out}.part*")

    def _has_grown(self, journal: Journal) -> bool:
        """Whether another rank has written to its file since this one has read it."""
        return journal is not self.own and journal.path.exists() and journal.path.stat().st_size > journal.size


def _place(number: int, offset: int) -> int:
    return number << OFFSET_BITS | offset
