"""What tells one model from another: its config and its files."""

import json
from pathlib import Path
from typing import Any

from pqm_fast.common import checksums
from pqm_fast.common.digests import folder_digests
from pqm_fast.model.recipe import CONFIG_KEY

# what a model computes depends on; a run folder holds much else, such as scores that are being written
MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.jinja")


def model_key(folder: Path) -> list[Any]:
    """Weights, config and tokenizer of a model's folder; [] for what is no folder, such as a hub id."""
    return folder_digests(folder, (file for pattern in MODEL_FILES for file in folder.glob(pattern)))


# versions, and what a run sets itself
LEFT_OUT = {"transformers_version", "dtype", "torch_dtype", "architectures", CONFIG_KEY}


def identify_model(path: str, config: Any) -> dict[str, Any]:
    """`config` of a model as it is in force, and the SHA-256 of each file of weights if it is a local folder; as JSON
    holds it. Weights from the hub are left out: those that a run goes on with are in its checkpoint."""
    kept = {k: v for k, v in config.to_dict().items() if k not in LEFT_OUT and not k.startswith("_")}
    folder = Path(path)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")] if folder.is_dir() else []
    return json.loads(json.dumps({"config": kept, "weights": checksums.sums(files)}, default=str))
