"""What tells one state of files from another: their contents, since size and time survive an edit."""

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from pqm_fast.data.sources import base_and_split, expand, is_pattern, open_source

# what a model computes depends on; a run folder holds much else, such as scores that are being written
MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.jinja")

SETTLED = 100_000_000  # nanoseconds


def file_digest(file: Path) -> str:
    """SHA-256, for which processors have instructions. A file that is as it was is read once in a process."""
    found = file.stat()
    # the time of the last change, which nobody can put back, is coarse: soon after one there may be another in it
    if time.time_ns() - found.st_ctime_ns < SETTLED:
        return _read_digest(file)
    return _known_digest(file, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def file_digests(files: Iterable[Path]) -> list[str]:
    """The same of several, side by side: hashlib lets other threads run."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(file_digest, files))


@lru_cache(4096)
def _known_digest(file: Path, *state: int) -> str:
    return _read_digest(file)


def _read_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as data:
        while block := data.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def source_key(path: str) -> list[Any]:
    """The contents of local files, the revision of a hub data set."""
    if is_pattern(path):
        return [path, *map(source_key, expand([path]))]
    base, _ = base_and_split(path)
    local = Path(base)
    if not base or not local.exists():  # no name at all would be the current folder
        open_source(path)  # says so if there is no such source
        from datasets import load_dataset_builder

        return [path, load_dataset_builder(base).hash]
    if local.is_dir():
        return [path, *_contents(local, local.rglob("*"))]
    return [path, *([file_digest(local)] if local.is_file() else [])]


def model_key(folder: Path) -> list[Any]:
    """Weights, config and tokenizer of a model's folder; [] for what is no folder, such as a hub id."""
    return _contents(folder, (file for pattern in MODEL_FILES for file in folder.glob(pattern)))


def _contents(folder: Path, files: Iterable[Path]) -> list[list[str]]:
    found = [file for file in sorted(set(files)) if file.is_file()]
    names = (str(file.relative_to(folder)) for file in found)
    return [list(pair) for pair in zip(names, file_digests(found), strict=True)]
