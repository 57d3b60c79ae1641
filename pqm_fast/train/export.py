"""`pqm-fast export`: the Hugging Face folder of any checkpoint of a run."""

from pathlib import Path
from types import SimpleNamespace

import torch

from pqm_fast.common.lock import is_empty
from pqm_fast.errors import PQMError
from pqm_fast.model.recipe import CONFIG_KEY, Recipe
from pqm_fast.ranks.group import ALONE
from pqm_fast.train.backbone import load_backbone
from pqm_fast.train.card import write_run_card
from pqm_fast.train.checkpoint import Checkpoint, load_checkpoint, read_checkpoint
from pqm_fast.train.export_options import ExportConfig
from pqm_fast.train.final_weights import final_weights
from pqm_fast.train.finite import first_not_finite
from pqm_fast.train.folder import RunFolder
from pqm_fast.train.guard import StepGuard
from pqm_fast.train.lora import add_adapters
from pqm_fast.train.optim import make_optimizer
from pqm_fast.train.run_files import BEST, LATEST, complete_checkpoints, pointed_at
from pqm_fast.train.sharding import parts
from pqm_fast.train.stored_options import config_of
from pqm_fast.train.training_state import TrainingState


def export(config: ExportConfig) -> Path:
    """Returns the folder written. The model that the run started from must still be where it was.

    Raises PQMError for a checkpoint that is not there or is damaged, and for an --out that is not empty.
    """
    out = Path(config.out)
    if not is_empty(out):
        raise PQMError(f"{out}: is not empty; choose another --out")
    checkpoint = _checkpoint(config)
    state = checkpoint.state
    options = config_of(state["options"], str(checkpoint.path))
    recipe = Recipe.from_config(SimpleNamespace(**{CONFIG_KEY: state["recipe"]}), str(checkpoint.path))
    dtype = getattr(torch, state["dtype"])
    model, tokenizer, _ = load_backbone(options, dtype, torch.device("cpu"), notes=[])
    if options.lora_rank:
        add_adapters(model, options.lora_rank, options.lora_alpha)
    own = parts(model)
    training = TrainingState(model, make_optimizer(own, options), own, StepGuard(0.0, "cpu"))
    load_checkpoint(checkpoint, training, ALONE)
    save_dtype = getattr(torch, config.save_dtype)
    weights = final_weights(model, training.optimizer, own, save_dtype)
    if name := first_not_finite(weights.items()):
        raise PQMError(f"{checkpoint.path}: {name} is not finite in {config.save_dtype}; choose --save-dtype float32")
    with RunFolder(out).writing("model.safetensors"):
        model.save(out, tokenizer, recipe, save_dtype, weights)
        write_run_card(out, Path(config.run), options, state["step"], state["dtype"])
    return out


def _checkpoint(config: ExportConfig) -> Checkpoint:
    folder = Path(config.run) / "checkpoints"
    known = complete_checkpoints(folder)
    if not known:
        raise PQMError(f"{config.run}: no checkpoint in {folder}; name a run folder that has one")
    path: Path | None
    if config.step in (LATEST, BEST):
        path = pointed_at(folder, str(config.step))
        if path is None and config.step == LATEST:
            path = known[-1]
        if path is None:
            raise PQMError(f"{config.run}: no checkpoint was evaluated, so none is the best; give --step N")
    else:
        path = folder / f"step-{config.step:07d}"
        if path not in known:
            steps = ", ".join(str(int(other.name.removeprefix("step-"))) for other in known)
            raise PQMError(f"{config.run}: no checkpoint of step {config.step}; there are those of {steps}")
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint, Checkpoint):
        raise PQMError(f"{path}: {checkpoint}; choose another --step")
    return checkpoint
