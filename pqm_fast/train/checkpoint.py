"""Resumable checkpoints: weights, optimizer, random state and position, published atomically, with checksums."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pqm_fast.common.checksums import find_damage, write_sums
from pqm_fast.common.files import atomic_folder, write_json
from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.folder import writing
from pqm_fast.train.run_files import complete_checkpoints

FILES = ("weights.safetensors", "training.pt", "state.json")
# the entries that a state written by this version has, with their types
STATE_TYPES = {
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
    """A checkpoint whose files are as they were written. `state` is the one that `save_checkpoint` got."""

    path: Path
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, model: StepQModel, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> None:
    """Writes folder/step-XXXXXXX and removes all but the newest `keep` checkpoints. `state` must hold `step`.

    A checkpoint of this step that exists already has the same content, and stays. Raises NotWritten.
    """
    path = folder / f"step-{state['step']:07d}"
    if path.exists():
        return
    with writing(path), atomic_folder(path) as temporary:
        with writing(path / "weights.safetensors"):
            weights = {name: tensor.detach().contiguous() for name, tensor in _tensors(model).items()}
            save_file(weights, temporary / "weights.safetensors")
        # through a file opened here, because its errors give the system's reason and those of torch's writer do not
        with writing(path / "training.pt"), open(temporary / "training.pt", "wb") as file:
            torch.save({"optimizer": optimizer.state_dict(), "random": _random_state()}, file)
        write_json(temporary / "state.json", state)
        write_sums(temporary)
    for old_checkpoint in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old_checkpoint)


def read_checkpoint(path: Path) -> Checkpoint | str:
    """The checkpoint at `path`, its files compared with their checksums; or what is wrong with it."""
    damage = find_damage(path, FILES)
    if damage is not None:
        return damage
    state = _read_state(path)
    return "state.json was not written by this version" if state is None else Checkpoint(path, state)


def load_checkpoint(checkpoint: Checkpoint, model: StepQModel, optimizer: torch.optim.Optimizer) -> None:
    """Restores weights, optimizer and random state. Raises PQMError for a checkpoint of another architecture."""
    path = checkpoint.path
    with _foreign_files_refused(path):
        weights = load_file(path / "weights.safetensors")
        training = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    tensors = _tensors(model)
    different = sorted(tensors.keys() ^ weights.keys()) or sorted(
        name for name, tensor in tensors.items() if tensor.shape != weights[name].shape
    )
    if different:
        raise PQMError(
            f"{path}: a checkpoint of another architecture: {len(different)} tensors differ, such as {different[0]}; "
            "resume with the model that the run was started with"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])
    with _foreign_files_refused(path):
        optimizer.load_state_dict(training["optimizer"])
        _set_random_state(training["random"])


@contextmanager
def _foreign_files_refused(path: Path) -> Iterator[None]:
    """Raises PQMError for whatever goes wrong in reading. torch raises exceptions without a common class for files that
    it, or this package, did not write."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise PQMError(f"{path}: not a checkpoint of pqm-fast ({error}); delete the folder") from error


def _read_state(path: Path) -> dict[str, Any] | None:
    """The content of state.json; None if this version did not write it."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        is_valid = all(type(state[name]) is kind for name, kind in STATE_TYPES.items())
        is_valid = is_valid and {"config", "weights"} <= state["model"].keys() and hasattr(torch, state["dtype"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return state if is_valid else None


def _tensors(model: StepQModel) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers. Tied ones appear once, under the name that comes first."""
    persistent = model.state_dict(keep_vars=True).keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return dict(model.named_parameters()) | buffers


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
