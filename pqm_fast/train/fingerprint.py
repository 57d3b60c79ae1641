"""Which model a run begins with, for the run to find it again."""

import json
from pathlib import Path
from typing import Any

from pqm_fast import checksums
from pqm_fast.model import CONFIG_KEY, StepQModel

# versions, and what a run sets itself
LEFT_OUT = {"transformers_version", "dtype", "torch_dtype", "architectures", CONFIG_KEY}


def identify_model(path: str, model: StepQModel) -> dict[str, Any]:
    """The model's config as it is in force, and the SHA-256 of each file of weights if it is a local folder; as JSON
    holds it. Weights from the hub are left out: those that a run goes on with are in its checkpoint."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in LEFT_OUT and not k.startswith("_")}
    folder = Path(path)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")] if folder.is_dir() else []
    return json.loads(json.dumps({"config": config, "weights": checksums.sums(files)}, default=str))
