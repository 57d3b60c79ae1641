"""The identity of a model: its config and the digests of its files."""

import json
from pathlib import Path
from typing import Any

from pqm_fast.common import checksums
from pqm_fast.common.digests import folder_digests
from pqm_fast.model.recipe import CONFIG_KEY

# the files that determine what a model computes; a run folder holds others, such as scores that are being written
MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.jinja")


def model_key(folder: Path) -> list[Any]:
    """[name, SHA-256] of the weights, config and tokenizer of a model folder; [] if it is not a folder but a hub id."""
    return folder_digests(folder, (file for pattern in MODEL_FILES for file in folder.glob(pattern)))


# config entries that differ between versions of transformers, or that a run sets itself
IGNORED_ENTRIES = {"transformers_version", "dtype", "torch_dtype", "architectures", CONFIG_KEY}


def identify_model(path: str, config: Any) -> dict[str, Any]:
    """The model's `config` in force and, for a local folder, the SHA-256 of each file of weights, as values that JSON
    can hold. Weights from the hub are left out, because a resumed run loads those of its checkpoint."""
    entries = {k: v for k, v in config.to_dict().items() if k not in IGNORED_ENTRIES and not k.startswith("_")}
    folder = Path(path)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")] if folder.is_dir() else []
    return json.loads(json.dumps({"config": entries, "weights": checksums.sums(files)}, default=str))
