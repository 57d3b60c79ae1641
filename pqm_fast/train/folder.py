"""The run folder while a run writes into it: whatever goes wrong there is told in one message."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pqm_fast.errors import PQMError


class NotWritten(PQMError):
    """A file of the run could not be written. What is kept of the run is for the loop to say."""


class RunFolder:
    """A run folder, made if it is not there; its writers use `writing`."""

    def __init__(self, path: Path):
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._found = os.stat(path)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yields the path of a file or folder that is written meanwhile.

        Raises NotWritten for a full disk, a limit on the size of files or a lack of memory, and where the run folder
        is no longer the one that the run began in.
        """
        self._check()
        try:
            with writing(self.path / name):
                yield self.path / name
        except NotWritten:
            self._check()  # a better reason than "No such file or directory"
            raise

    def _check(self) -> None:
        try:
            same = os.path.samestat(os.stat(self.path), self._found)
        except OSError:
            same = False
        if not same:
            raise NotWritten(
                f"{self.path}: the run folder was removed or replaced while the run was writing into it, so nothing "
                "more can be saved"
            )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While `path` is written: NotWritten for what the system or the libraries raise if it cannot be."""
    try:
        yield
    except (OSError, SafetensorError, MemoryError, RuntimeError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise NotWritten(f"{path}: cannot be written: {reason}") from error


def _reason(error: Exception) -> str | None:
    """In a few words; None for an error that has nothing to do with writing."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        found = re.search(r"I/O error: (.*?)( \(os error \d+\))?$", str(error))
        return found[1] if found else str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "the machine is out of memory"
    # torch.save puts an error of its own, of the positions in its archive, in the place of the system's
    return _reason(error.__context__) if isinstance(error.__context__, OSError | MemoryError) else None
