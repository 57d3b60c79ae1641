"""The run folder while a run writes into it: whatever goes wrong there becomes one message."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch.distributed.checkpoint import CheckpointException

from pqm_fast.errors import PQMError


class NotWritten(PQMError):
    """A file of the run could not be written. The loop adds what is kept of the run."""


class RunFolder:
    """A run folder, created if it does not exist. All that is written into it is written inside `writing`."""

    def __init__(self, path: Path):
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._stat_at_start = os.stat(path)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yields the path of the file or folder `name`, to be written in this context.

        Raises NotWritten for a full disk, a limit on the size of files or a lack of memory, and if the run folder is no
        longer the one that the run started in.
        """
        self._check_same_folder()
        try:
            with writing(self.path / name):
                yield self.path / name
        except NotWritten:
            self._check_same_folder()  # gives a better reason than "No such file or directory"
            raise

    def _check_same_folder(self) -> None:
        try:
            is_same = os.path.samestat(os.stat(self.path), self._stat_at_start)
        except OSError:
            is_same = False
        if not is_same:
            raise NotWritten(
                f"{self.path}: the run folder was removed or replaced while the run was writing into it, so nothing "
                "more can be saved"
            )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Use it to write `path`: if that fails, the error of the system or a library becomes NotWritten."""
    try:
        yield
    except (OSError, SafetensorError, MemoryError, RuntimeError, CheckpointException) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise NotWritten(f"{path}: cannot be written: {reason}") from error


def _reason(error: BaseException) -> str | None:
    """Why a file could not be written, in a few words; None for an error that has nothing to do with writing."""
    if isinstance(error, CheckpointException):  # it holds the error of each rank
        reasons = [_reason(failure) for failure, _ in error.failures.values()]
        return next((reason for reason in reasons if reason is not None), None)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        io_error = re.search(r"I/O error: (.*?)( \(os error \d+\))?$", str(error))
        return io_error[1] if io_error else str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "the machine is out of memory"
    # torch.save replaces the system's error by one about positions in its archive
    return _reason(error.__context__) if isinstance(error.__context__, OSError | MemoryError) else None
