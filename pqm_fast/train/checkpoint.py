"""Resumable checkpoints: weights, optimizer, random state and position, published atomically, with checksums."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pqm_kernels import AdamW
from safetensors.torch import load_file, save_file

from pqm_fast.common.checksums import find_damage, write_sums
from pqm_fast.common.files import atomic_folder, write_json
from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.folder import writing
from pqm_fast.train.lora import adapted, merged_state

FILES = ("weights.safetensors", "training.pt", "state.json")
# what a state must have, and of which type, to be one of this version's
STATE = {
    "step": int,
    "total_steps": int,
    "micro_batch_tokens": int,
    "accumulation": int,
    "dtype": str,
    "options": dict,
    "model": dict,
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as they were written. `state` is what `save_checkpoint` was given."""

    path: Path
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, model: StepQModel, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> None:
    """Writes folder/step-XXXXXXX and removes all but the newest `keep`. `state` must hold `step`.

    One of this step that is there already is the same and stays. Raises NotWritten.
    """
    path = folder / f"step-{state['step']:07d}"
    if path.exists():
        return
    with writing(path), atomic_folder(path) as temporary:
        # tied tensors are stored once, under the name that comes first
        weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
        weights |= {name: b.detach().contiguous() for name, b in _persistent_buffers(model)}
        with writing(path / "weights.safetensors"):
            save_file(weights, temporary / "weights.safetensors")
        # through a file of ours, whose errors say what torch's do not
        with writing(path / "training.pt"), open(temporary / "training.pt", "wb") as file:
            torch.save({"optimizer": optimizer.state_dict(), "random": _random_state()}, file)
        write_json(temporary / "state.json", state)
        write_sums(temporary)
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Oldest first. What was interrupted while being written never got its name, and is left out."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(p for p in found if re.fullmatch(r"step-\d{7}", p.name) and p.is_dir())


def newest_intact(folder: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest checkpoint whose files are as they were written, and what is wrong with each newer one.

    Raises PQMError if there are checkpoints and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(complete_checkpoints(folder)):
        reason = find_damage(path, FILES)
        if reason is None:
            state = _read_state(path)
            if state is not None:
                return Checkpoint(path, state), damaged
            reason = "state.json is none of this version's"
        damaged[path] = reason
    if damaged:
        each = "; ".join(f"{path}: {reason}" for path, reason in damaged.items())
        raise PQMError(
            f"{folder}: every checkpoint is damaged, or of a pqm-fast from before checkpoints had checksums ({each}); "
            "put back a copy, or delete the folder to start again from the first step"
        )
    return None, damaged


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        known = all(type(state[name]) is kind for name, kind in STATE.items())
        known = known and {"config", "weights"} <= state["model"].keys() and hasattr(torch, state["dtype"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return state if known else None


def load_checkpoint(checkpoint: Checkpoint, model: StepQModel, optimizer: torch.optim.Optimizer) -> None:
    """Puts everything back in place. Raises PQMError for one of another architecture."""
    path = checkpoint.path
    with _told_as_foreign(path):
        weights = load_file(path / "weights.safetensors")
        training = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
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
    with _told_as_foreign(path):
        optimizer.load_state_dict(training["optimizer"])
        _set_random_state(training["random"])


@contextmanager
def _told_as_foreign(path: Path) -> Iterator[None]:
    """What torch raises for files that are not its own, or not ours, has no common class."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise PQMError(f"{path}: not a checkpoint of pqm-fast ({error}); delete the folder") from error


def final_weights(model: StepQModel, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict of the classifier as it is to be used, cast to `dtype`: adapters merged in; for float32, the
    master weights of what is no adapter."""
    state = merged_state(model.classifier) if adapted(model.classifier) else model.classifier.state_dict()
    if dtype == torch.float32 and isinstance(optimizer, AdamW):
        learned = {name: p for name, p in model.classifier.named_parameters() if p.requires_grad and name in state}
        state |= {name: optimizer.master(p).cpu() for name, p in learned.items()}
    return {name: tensor.detach().to(dtype) for name, tensor in state.items()}


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
