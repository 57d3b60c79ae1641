"""OUT.part: what a run has got so far, one JSON line each, so that the same command goes on from there."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pqm_fast.errors import PQMError
from pqm_fast.files import write_json


class Journal:
    """Rows in the order they came. `means` is what they depend on: a run with other options must not go on from them.

    Raises PQMError if OUT exists already, or OUT.part was begun with something else. Writes nothing before `append`.
    """

    def __init__(self, out: Path, means: dict[str, Any]):
        if out.exists():
            raise PQMError(f"{out}: exists already; delete it or choose another --out")
        self.path = out.with_name(out.name + ".part")
        self.begun_with = out.with_name(out.name + ".part.json")
        self.means = json.loads(json.dumps(means))
        self.size = 0
        self.file: Any = None
        if self.path.exists():
            self._check()

    def replay(self, take: Callable[[int, dict[str, Any]], None]) -> None:
        """Calls `take` with (where it stands, row) for every row. The last, if a crash cut it off, is written over."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    take(self.size, json.loads(line))
                except (ValueError, LookupError, TypeError) as error:
                    raise PQMError(f"{self.path}: damaged ({error!r}); delete it to start over") from error
                self.size += len(line)

    def append(self, row: dict[str, Any]) -> int:
        """Writes a row and hands it to the system. Returns where it stands."""
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.begun_with, self.means)
            self.file = open(self.path, "r+b" if self.path.exists() else "w+b")  # noqa: SIM115
            self.file.seek(self.size)
        place = self.size
        self.size += self.file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
        self.file.flush()
        return place

    def read(self, place: int) -> dict[str, Any]:
        """The row that stands there."""
        if self.file is None:
            self.file = open(self.path, "r+b")  # noqa: SIM115
        self.file.seek(place)
        return json.loads(self.file.readline())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """An error within says that nothing is lost."""
        try:
            yield
        except PQMError as error:
            if self.size:
                raise PQMError(f"{error}; what is done is kept in {self.path}") from error
            raise
        finally:
            self.close()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def remove(self) -> None:
        """Once OUT holds everything."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.begun_with.unlink(missing_ok=True)

    def _check(self) -> None:
        try:
            before = json.loads(self.begun_with.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PQMError(f"{self.path}: damaged ({error}); delete it to start over") from error
        if changed := [name for name in self.means if before.get(name) != self.means[name]]:
            values = ", ".join(f"{name} ({before.get(name)!r} then, {self.means[name]!r} now)" for name in changed)
            raise PQMError(f"{self.path}: was begun with other options: {values}; delete it to start over")
