"""Resumable checkpoints: what training changes, and where the run stands; published atomically, with checksums.

torch.distributed.checkpoint writes and reads it: each rank its part, in safetensors files, and any number of ranks can
read it. Random numbers are not part of it: they follow from the seed, the step and the rank.
"""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from pqm_fast.common.checksums import find_damage, sums, write_list
from pqm_fast.common.files import atomic_file, atomic_folder, write_json
from pqm_fast.errors import PQMError
from pqm_fast.ranks.group import Ranks
from pqm_fast.train.folder import writing
from pqm_fast.train.run_files import BEST, LATEST, complete_checkpoints
from pqm_fast.train.sharding import like, local
from pqm_fast.train.training_state import TrainingState

FILES = ("state.json",)
FILE_BYTES = 2**30  # a file has about as much: it is put together in memory before it is written
# the entries that a state written by this version has, with their types
STATE_TYPES = {
    "step": int,
    "total_steps": int,
    "micro_batch_tokens": int,
    "micro_batches": int,
    "ranks": int,
    "dtype": str,
    "options": dict,
    "recipe": dict,
    "left_out": dict,
    "model": dict,
}
Value = TypeVar("Value")
# one process is what is meant
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning, "torch.distributed.checkpoint")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as they were written. `state` is the one that `CheckpointWriter.save` got."""

    path: Path
    state: dict[str, Any]


class CheckpointWriter:
    """Writes checkpoints into `folder`, and keeps the newest `keep` of them and the best.

    All ranks call its methods. `ahead`: training goes on while a checkpoint is written, from a copy on the host; an
    error is then raised by the next call. `held_out`: the held-out loss of each step that was evaluated, as far as it
    is known when it is called.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, keep: int, *, ahead: bool, held_out: Callable[[], dict[int, float]] = dict
    ):
        self.folder, self.keep, self.ahead, self.held_out = folder, keep, ahead, held_out
        # a group of its own, because a thread uses it while the training uses the others
        self.ranks = replace(ranks, hosts=ranks.new_host_group())
        self._meshes: dict[DeviceMesh, DeviceMesh] = {}
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def save(self, training: TrainingState, state: dict[str, Any]) -> None:
        """Writes folder/step-XXXXXXX. `state` must hold `step`.

        A checkpoint of this step that exists already has the same content, and stays. Raises NotWritten.
        """
        self.wait()
        path = self.folder / f"step-{state['step']:07d}"
        if self.ranks.from_first(path.exists):
            return
        tensors = training.tensors()
        if self.ahead:
            self._make_host_meshes(tensors.values())
        tensors = {name: tensor for name, tensor in tensors.items() if self._is_ours(tensor)}
        if not self.ahead:
            self._write(path, tensors, state)
            return
        copies = {name: self._on_host(tensor) for name, tensor in tensors.items()}
        self._thread = Thread(target=self._write_ahead, args=(path, copies, state), name="checkpoint")
        self._thread.start()

    def _is_ours(self, tensor: torch.Tensor) -> bool:
        """Whether this rank writes its part of a tensor: several may have the same part, or the whole."""
        if not isinstance(tensor, DTensor):
            return self.ranks.first
        coordinate = tensor.device_mesh.get_coordinate()
        return coordinate is not None and not any(coordinate[:-1])

    def wait(self) -> None:
        """Waits until nothing is being written. Raises NotWritten if that failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Waits until nothing is being written, whether it succeeds or not."""
        if self._thread is not None:
            self._thread.join()

    def _write_ahead(self, path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        try:
            self._write(path, tensors, state)
        except BaseException as error:  # raised by `wait`, in the thread that trains
            self._error = error

    def _write(self, path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        first = self.ranks.first
        with writing(path), ExitStack() as stack:
            temporary = self._everywhere(lambda: stack.enter_context(atomic_folder(path)) if first else path)[0]
            writer = dcp.HuggingFaceStorageWriter(str(temporary), _file_of(tensors), save_distributed=True)
            writer.per_thread_copy_ahead = 0  # else it waits for all that the GPU has to do, every 10 MB
            dcp.save(tensors, storage_writer=writer, process_group=self.ranks.hosts, no_dist=self.ranks.world == 1)
            own_files = f"shard-{self.ranks.rank + 1:05d}-*.safetensors"
            digests = self._everywhere(lambda: sums(temporary.glob(own_files)))

            def publish() -> None:
                write_json(temporary / "state.json", state)
                digests.append(sums([temporary / "state.json"]))
                write_list(temporary, {name: digest for own in digests for name, digest in own.items()})
                stack.close()  # gives the folder its name
                self.point()

            self._everywhere(lambda: publish() if first else None)

    def point(self) -> None:
        """Names the best and the newest checkpoint, and removes the others but `keep`. For rank 0 alone."""
        known = {int(path.name.removeprefix("step-")): path for path in complete_checkpoints(self.folder)}
        losses = {step: loss for step, loss in self.held_out().items() if step in known and math.isfinite(loss)}
        best = known[min(losses, key=losses.__getitem__)] if losses else None
        if best is not None:
            _write_name(self.folder / BEST, best)
        for old in list(known.values())[: -self.keep]:
            if old != best:
                shutil.rmtree(old)
        if known:
            _write_name(self.folder / LATEST, max(known.values()))

    def _everywhere(self, make: Callable[[], Value]) -> list[Value]:
        """What `make` returns on each rank. If it fails on one, all of them raise its error."""
        result: Value | None = None
        error: Exception | None = None
        try:
            result = make()
        except Exception as failure:
            error = failure
        outcomes = self.ranks.gather((result, error))
        for _, failed in outcomes:
            if failed is not None:
                raise failed
        return [made for made, _ in outcomes]  # type: ignore[misc]

    def _make_host_meshes(self, tensors: Iterable[torch.Tensor]) -> None:
        """Makes a mesh of the hosts for each mesh of devices; every rank takes part, whatever it writes."""
        for tensor in tensors:
            if isinstance(tensor, DTensor) and (mesh := tensor.device_mesh) not in self._meshes:
                self._meshes[mesh] = init_device_mesh("cpu", tuple(mesh.shape), mesh_dim_names=mesh.mesh_dim_names)

    def _on_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in the memory of the host."""
        mesh = self._meshes[tensor.device_mesh] if isinstance(tensor, DTensor) else None
        return like(local(tensor).to("cpu", copy=True), tensor, mesh)


def read_checkpoint(path: Path) -> Checkpoint | str:
    """The checkpoint at `path`, its files compared with their checksums; or what is wrong with it."""
    damage = find_damage(path, FILES)
    if damage is not None:
        return damage
    state = _read_state(path)
    return "state.json was not written by this version" if state is None else Checkpoint(path, state)


def load_checkpoint(checkpoint: Checkpoint, training: TrainingState, ranks: Ranks) -> None:
    """Restores what training changes, on any number of ranks. Raises PQMError for a checkpoint of another
    architecture."""
    path = checkpoint.path
    reader = dcp.HuggingFaceStorageReader(str(path))
    with _foreign_files_refused(path):
        stored = reader.read_metadata().state_dict_metadata
        training.make_optimizer_state(stored)
        tensors = training.tensors()
        sizes = {name: getattr(entry, "size", None) for name, entry in stored.items()}
    different = sorted(tensors.keys() ^ sizes.keys()) or sorted(
        name for name, tensor in tensors.items() if tensor.shape != sizes[name]
    )
    if different:
        raise PQMError(
            f"{path}: a checkpoint of another architecture: {len(different)} tensors differ, such as {different[0]}; "
            "resume with the model that the run was started with"
        )
    with _foreign_files_refused(path), torch.no_grad():
        dcp.load(tensors, storage_reader=reader, process_group=ranks.hosts, no_dist=ranks.world == 1)
        training.take_counts(tensors)


@contextmanager
def _foreign_files_refused(path: Path) -> Iterator[None]:
    """Raises PQMError for whatever goes wrong in reading. torch raises exceptions without a common class for files that
    it, or this package, did not write."""
    try:
        yield
    except MemoryError:
        raise
    except (Exception, dcp.CheckpointException) as error:
        raise PQMError(f"{path}: not a checkpoint of pqm-fast ({error}); delete the folder") from error


def _read_state(path: Path) -> dict[str, Any] | None:
    """The content of state.json; None if this version did not write it."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        is_valid = all(type(state[name]) is kind for name, kind in STATE_TYPES.items())
        is_valid = is_valid and {"config", "weights"} <= state["model"].keys() and hasattr(torch, state["dtype"])
    except (ValueError, LookupError, TypeError, RecursionError, OSError):
        return None
    return state if is_valid else None


def _file_of(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """The number, from 1, of the file that each tensor goes into. Those of rank 0, which has all, count for all."""
    numbers, file, total = {}, 1, 0
    for name, tensor in tensors.items():
        shards = tensor.device_mesh.size(-1) if isinstance(tensor, DTensor) else 1
        size = tensor.numel() * tensor.element_size() // shards
        if total and total + size > FILE_BYTES:
            file, total = file + 1, 0
        numbers[name] = file
        total += size
    return numbers


def _write_name(file: Path, checkpoint: Path) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(checkpoint.name + "\n", encoding="utf-8")
