"""Resumable checkpoints: weights, optimizer, random state and position, published atomically."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from pqm_kernels import AdamW
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pqm_fast.errors import PQMError
from pqm_fast.files import atomic_folder, write_json
from pqm_fast.model import StepQModel
from pqm_fast.train.lora import adapted, merged_state


def save_checkpoint(
    folder: Path, model: StepQModel, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Writes folder/step-XXXXXXX and removes all but the newest `keep`. `state` must hold `step`."""
    path = folder / f"step-{state['step']:07d}"
    if path.exists():  # the same step of this very run, saved before it was interrupted
        shutil.rmtree(path)
    with atomic_folder(path) as temporary:
        # tied tensors are stored once, under the name that comes first
        weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
        weights |= {name: b.detach().contiguous() for name, b in _persistent_buffers(model)}
        save_file(weights, temporary / "weights.safetensors")
        torch.save({"optimizer": optimizer.state_dict(), "random": _random_state()}, temporary / "training.pt")
        write_json(temporary / "state.json", state)
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def complete_checkpoints(folder: Path) -> list[Path]:
    """Oldest first. What was interrupted while being written never got its name, and is left out."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(p for p in found if re.fullmatch(r"step-\d{7}", p.name) and (p / "state.json").exists())


def interrupted_checkpoints(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(p for p in found if re.fullmatch(r"\.step-\d{7}\.tmp-\w{8}", p.name))


def newest_state(folder: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` was given with the newest complete checkpoint. Raises PQMError if it is damaged."""
    found = complete_checkpoints(folder)
    return _read_state(found[-1]) if found else None


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if "micro_batch_tokens" not in state:  # also of weights in another dtype
        raise PQMError(f"{path}: was written by an earlier pqm-fast; go on with that one, or start again")
    return state


def _damaged(path: Path, error: Exception) -> PQMError:
    return PQMError(f"{path}: damaged checkpoint ({error}); delete the folder to go on from the one before")


def load_checkpoint(path: Path, model: StepQModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts everything back in place and returns the state. PQMError if it is of another architecture or damaged."""
    try:
        weights = load_file(path / "weights.safetensors")
        training = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise _damaged(path, error) from error
    state = _read_state(path)
    own = dict(model.named_parameters()) | dict(_persistent_buffers(model))
    different = sorted(own.keys() ^ weights.keys()) or sorted(n for n in own if own[n].shape != weights[n].shape)
    if different:
        raise PQMError(
            f"{path}: a checkpoint of another architecture: {len(different)} tensors differ, such as {different[0]}; "
            "resume with the model that the run was started with"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    optimizer.load_state_dict(training["optimizer"])
    _set_random_state(training["random"])
    return state


def final_weights(model: StepQModel, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict of the classifier as it is to be used: adapters merged in; for float32, the master weights of
    what is no adapter."""
    state = merged_state(model.classifier) if adapted(model.classifier) else model.classifier.state_dict()
    if dtype == torch.float32 and isinstance(optimizer, AdamW):
        learned = {name: p for name, p in model.classifier.named_parameters() if p.requires_grad and name in state}
        state |= {name: optimizer.master(p).cpu() for name, p in learned.items()}
    return state


def _persistent_buffers(model: StepQModel) -> list[tuple[str, torch.Tensor]]:
    kept = model.state_dict(keep_vars=True).keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in kept]


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
