"""The token cache: records are tokenised once, kept on disk, and checked before each use."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_folder, remove_leftovers, temporary_beside
from pqm_fast.data.dataset import INFO, TrajectoryDataset
from pqm_fast.data.dataset_writer import find_damage
from pqm_fast.data.encode import Encoder
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.source_key import source_key
from pqm_fast.data.tokenise import Wanted, tokenise
from pqm_fast.errors import PQMError

LAYOUT = 4  # raise it when the stored files change: older caches are then ignored
LABELS_ALONE = Wanted()


def load_dataset(
    paths: Sequence[str],
    options: ReadOptions,
    encoder: Encoder,
    cache_dir: str | None = None,
    wanted: Wanted = LABELS_ALONE,
) -> TrajectoryDataset:
    """Records as a data set: from the cache if every byte there is intact, otherwise read and tokenised.

    Damage to the cache is reported in `.notes`. Raises PQMError, naming the record, for anything that cannot be used;
    with `options.skip_bad` such records are counted in `.notes` instead. A record without any label cannot be trained
    on and counts as bad, unless `wanted` needs no labels.
    """
    root, key = cache_root(cache_dir), _cache_key(paths, options, encoder, wanted)
    folder = root / key
    remove_leftovers(root)
    notes = []
    if folder.exists() and (damage := find_damage(folder)):
        notes.append(f"{damage}: the stored tokens are damaged and were made again")
        with temporary_beside(folder) as aside:
            os.rename(folder, aside)
    if not folder.exists():
        _fill(folder, paths, options, encoder, wanted)
        if _cache_key(paths, options, encoder, wanted) != key:
            shutil.rmtree(folder)
            raise PQMError(f"{', '.join(paths)}: changed while being read; start again when it is complete")
    dataset = TrajectoryDataset(folder)
    dataset.notes = notes + dataset.notes
    return dataset


def _fill(folder: Path, paths: Sequence[str], options: ReadOptions, encoder: Encoder, wanted: Wanted) -> None:
    try:
        with atomic_folder(folder) as temporary:
            tokenise(temporary, paths, options, encoder, wanted)
    except OSError as error:
        if not (folder / INFO).exists():  # if it exists, another run has made the same one meanwhile
            raise PQMError(
                f"{error.filename or folder}: the tokens cannot be stored ({error.strerror}); make room there, or "
                "choose another --cache-dir"
            ) from error


def cache_root(cache_dir: str | None) -> Path:
    if cache_dir:
        return Path(cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pqm-fast"


def _cache_key(paths: Sequence[str], options: ReadOptions, encoder: Encoder, wanted: Wanted) -> str:
    """A digest of everything that the stored tokens depend on."""
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    tokenizer = backend.to_str() if backend is not None else repr(encoder.tokenizer)
    parts: list[Any] = [
        LAYOUT,
        asdict(options),
        asdict(encoder.template),
        encoder.max_length,
        encoder.bos,
        tokenizer,
        wanted.judge is not None,
        wanted.labels,
    ]
    parts += [source_key(path) for path in paths]
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()
