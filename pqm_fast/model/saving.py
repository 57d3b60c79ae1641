"""Writes a checkpoint folder with checksums, and checks its files before they are loaded."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pqm_fast.common import checksums
from pqm_fast.common.files import sync, temporary_beside, write_json
from pqm_fast.errors import PQMError
from pqm_fast.model.device import dtype_name
from pqm_fast.model.loading import quiet_transformers
from pqm_fast.model.recipe import CONFIG_KEY, Recipe


def save_checkpoint(
    classifier: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    dtype: torch.dtype,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes a `*ForTokenClassification` folder with checksums into `folder`, weights cast to `dtype`.

    `state`: the weights, already of that dtype, if they are not the classifier's own state dict (with adapters merged
    in, or master weights). Each file replaces its predecessor whole, config.json last.
    """
    with temporary_beside(folder / "model") as temporary:
        if state is None:
            state = {name: tensor.detach().to(dtype) for name, tensor in classifier.state_dict().items()}
        setattr(classifier.config, CONFIG_KEY, asdict(recipe))
        with quiet_transformers():
            classifier.save_pretrained(temporary, state_dict=state)
        tokenizer.save_pretrained(temporary)
        # transformers writes the dtype of the model, which does not change, not that of the saved tensors
        config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = dtype_name(dtype)
        write_json(temporary / "config.json", config)
        checksums.write_sums(temporary)
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, folder / file.name)
        sync(folder)


def check_files(folder: Path) -> None:
    """Raises PQMError for a checkpoint folder whose files have changed since `save_checkpoint` wrote them."""
    if not checksums.has_sums(folder):
        return
    damage = checksums.find_damage(folder, [file.name for file in folder.glob("*.safetensors")])
    if damage is not None:
        resume = f"pqm-fast train --config {folder / 'config.yaml'} --resume"
        repair = f"write it again from its last checkpoint (`{resume}`), " if (folder / "checkpoints").is_dir() else ""
        raise PQMError(
            f"{folder}: {damage}; {repair}put back a copy, or delete {checksums.SUMS_FILE} there if the change was "
            "made on purpose"
        )
