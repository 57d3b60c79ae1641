"""The log of every rank but the first: it writes and prints nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pqm_fast.train.run import Run


class SilentLog:
    """Has the methods of `RunLog`. `evaluated`: see there."""

    def __init__(self, evaluated: set[int]):
        self.evaluated = evaluated

    def begin(self, run: Run) -> None:
        pass

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def advance(self) -> None:
        pass

    @contextmanager
    def evaluating(self, trajectories: int) -> Iterator[None]:
        yield

    def close(self) -> None:
        pass
