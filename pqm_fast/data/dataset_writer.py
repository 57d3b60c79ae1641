"""Writes the files of a TrajectoryDataset, with checksums, and checks them later."""

import hashlib
import json
import math
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pqm_fast.common.digests import file_digest
from pqm_fast.common.files import write_json
from pqm_fast.data.dataset import COLUMNS, INFO
from pqm_fast.data.encode import Encoded

_FLAT_COLUMNS = {"ids_end": "ids", "steps_end": "labels", "names_end": "names"}


class DatasetWriter:
    """Writes trajectories into a folder, column by column. The folder is a data set after `finish`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.count = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._checksums = {name: hashlib.sha256() for name in COLUMNS}
        self._ends = dict.fromkeys(_FLAT_COLUMNS, 0)
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
        with ExitStack() as stack:
            self._files = {name: stack.enter_context(open(folder / name, "wb")) for name in COLUMNS}
            self._stack = stack.pop_all()

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(
        self, encoded: Encoded, *, labels: list[float | None], question: int, name: str, outcome: float = math.nan
    ) -> None:
        """`labels` has one entry per step that was kept; `name` is the record id."""
        row = {
            "ids": encoded.input_ids,
            "rows": encoded.step_tokens,
            "labels": np.array(labels, dtype=np.float32),  # None becomes NaN
            "names": np.frombuffer(name.encode(), dtype=np.uint8),
            "steps_cut": np.array([encoded.steps_cut]),
            "question": np.array([question], dtype=np.uint64),
            "outcome": np.array([outcome]),
        }
        for end, flat in _FLAT_COLUMNS.items():
            self._ends[end] += len(row[flat])
            row[end] = np.array([self._ends[end]])
        for column, values in row.items():
            self._parts[column].append(values)
        self.count += 1

    def flush(self) -> None:
        """Writes what was added since the last call."""
        for column, dtype in COLUMNS.items():
            if parts := self._parts[column]:
                flat = np.concatenate(parts).astype(dtype).tobytes()
                if column != "outcome":  # runs that need no outcomes are resumed whether or not they are known
                    self._digest.update(flat)
                self._checksums[column].update(flat)
                self._files[column].write(flat)
                parts.clear()

    def finish(self, notes: list[str]) -> None:
        self._stack.close()
        columns = {name: checksum.hexdigest() for name, checksum in self._checksums.items()}
        info = {"notes": notes, "digest": self._digest.hexdigest(), "columns": columns}
        write_json(self.folder / INFO, info | {"checksum": _checksum_of(info)})


def find_damage(folder: Path) -> str | None:
    """The first file of a data set that is not as it was written, and what is wrong with it; None if all are intact."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        if info.pop("checksum") != _checksum_of(info):
            return f"{folder / INFO}: not as it was written"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{folder / INFO}: {error}"
    for name, checksum in info["columns"].items():
        try:
            if file_digest(folder / name) != checksum:
                return f"{folder / name}: not as it was written"
        except OSError as error:
            return f"{folder / name}: {error.strerror}"
    return None


def _checksum_of(info: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
