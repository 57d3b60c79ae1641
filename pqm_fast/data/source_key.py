"""A key for the contents of a data source: two sources with equal keys hold equal records."""

from pathlib import Path
from typing import Any

from pqm_fast.common.digests import file_digest, folder_digests
from pqm_fast.data.sources import base_and_split, expand, is_pattern, open_source


def source_key(path: str) -> list[Any]:
    """[the source, digests of its files], or [the source, revision] for a hub data set; JSON can hold it.

    Raises PQMError if there is no such source.
    """
    if is_pattern(path):
        return [path, *map(source_key, expand([path]))]
    base, _ = base_and_split(path)
    local = Path(base)
    if not base or not local.exists():  # an empty name would be the current folder
        open_source(path)  # raises PQMError if there is no such source
        from datasets import load_dataset_builder

        return [path, load_dataset_builder(base).hash]
    if local.is_dir():
        return [path, *folder_digests(local, local.rglob("*"))]
    return [path, *([file_digest(local)] if local.is_file() else [])]
