"""The files that keep hidden states: rows of one data set at several decoder layers, memory-mapped and checksummed.

A folder holds `steps` ([S] int64, the row of each step of the data set, flat) and for each layer `layer-LL` ([R, D],
plain bytes) with `layer-LL.json` (shape, dtype, digests of its parts). A layer without its .json is not complete. While
it is written, its name is `layer-LL.new`, so that nobody maps a file that still changes.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pqm_fast.common.files import atomic_file, sync, write_json

STEPS = "steps"


@dataclass(frozen=True)
class Part:
    """Bytes of a file, one batch of rows, and their digest."""

    size: int
    digest: str

    @classmethod
    def of(cls, data: bytes) -> "Part":
        return cls(len(data), hashlib.blake2b(data, digest_size=16).hexdigest())


@dataclass(frozen=True)
class StateFiles:
    """The complete layers in a folder."""

    folder: Path

    def path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:02d}"

    def new(self, layer: int) -> Path:
        """The file of a layer while it is written."""
        return self.path(layer).with_suffix(".new")

    def finish(self, parts: dict[int, list[Part]], width: int, dtype: str) -> None:
        """Declares the new files of layers complete; `parts` are all bytes of each, in order."""
        for layer in parts:
            sync(self.new(layer))
        for layer, own in parts.items():
            entry = {"width": width, "dtype": dtype, "parts": [[part.size, part.digest] for part in own]}
            os.replace(self.new(layer), self.path(layer))
            write_json(_entry(self.path(layer)), entry | {"digest": _digest_of(entry)})

    def write_steps(self, row_of_step: np.ndarray) -> None:
        """Writes `steps`, unless it is there and intact: it does not depend on the layers."""
        if self.damage_of_steps() is None:
            return
        data = row_of_step.astype(np.int64).tobytes()
        with atomic_file(self.folder / STEPS) as temporary:
            temporary.write_bytes(data)
        write_json(_entry(self.folder / STEPS), {"digest": Part.of(data).digest})

    def row_of_step(self) -> np.ndarray:
        """[S] int64, the row of each step."""
        return np.fromfile(self.folder / STEPS, dtype=np.int64)

    def damage_of_steps(self) -> str | None:
        """Why `row_of_step` cannot be used; "" if it was never written, None if it is intact."""
        entry = _entry(self.folder / STEPS)
        if not entry.exists():
            return ""
        with suppress(OSError, ValueError, LookupError, TypeError):
            digest = json.loads(entry.read_text(encoding="utf-8"))["digest"]
            if Part.of((self.folder / STEPS).read_bytes()).digest == digest:
                return None
        return f"{self.folder / STEPS}: not as it was written"

    def damage(self, layer: int) -> str | None:
        """Why the states of a layer cannot be used; "" if they were never completed, None if they are intact."""
        if not _entry(self.path(layer)).exists():
            return ""
        entry = _read_entry(self.path(layer))
        if entry is None:
            return f"{_entry(self.path(layer))}: not as it was written"
        parts = [Part(size, digest) for size, digest in entry["parts"]]
        if count_intact(self.path(layer), parts) < len(parts) or _size(self.path(layer)) != sum(p.size for p in parts):
            return f"{self.path(layer)}: not as it was written"
        return None

    def rows(self, layer: int) -> torch.Tensor:
        """The states [R, D] of a layer that is intact, mapped into memory and not to be written."""
        entry = _read_entry(self.path(layer))
        assert entry is not None
        dtype, count = getattr(torch, entry["dtype"]), sum(size for size, _ in entry["parts"])
        path = str(self.path(layer))
        # shared=False: what is written to the tensor by mistake never reaches the file
        flat = torch.from_file(path, shared=False, size=count // dtype.itemsize, dtype=dtype)
        return flat.view(-1, entry["width"])


def count_intact(path: Path, parts: Iterable[Part]) -> int:
    """How many of the first parts of a file are as they were written."""
    if not path.exists():
        return 0
    starts, offset = [], 0
    for part in parts:
        starts.append((offset, part))
        offset += part.size

    def is_intact(at: tuple[int, Part]) -> bool:
        start, part = at
        return Part.of(os.pread(file.fileno(), part.size, start)) == part

    # threads, because hashing and reading release the interpreter lock
    with open(path, "rb") as file, ThreadPoolExecutor() as pool:
        intact = list(pool.map(is_intact, starts))
    return next((i for i, good in enumerate(intact) if not good), len(intact))


def _entry(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_entry(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(_entry(path).read_text(encoding="utf-8"))
        return entry if entry.pop("digest") == _digest_of(entry) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _digest_of(entry: dict[str, Any]) -> str:
    return Part.of(json.dumps(entry, sort_keys=True).encode()).digest


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
