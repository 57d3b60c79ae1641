"""Runs a decoder once over a data set, and keeps the hidden states of its steps after chosen layers."""

import hashlib
import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pqm_fast.common.files import write_all
from pqm_fast.common.journal import Journal
from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.dataset import TrajectoryDataset
from pqm_fast.data.loader import load_steps
from pqm_fast.data.pack import PackedBatch, pack
from pqm_fast.errors import Diverged, PQMError
from pqm_fast.model.cut import decoder_layers, final_norm, norm_layer
from pqm_fast.model.device import dtype_name
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.probe.state_files import Part, StateFiles, count_intact

Parts = dict[str, list[Any]]  # {layer: [bytes, digest]} of one batch
# the columns of a data set that its states depend on: not labels, outcomes or record ids
TOKEN_COLUMNS = ("ids", "ids_end", "rows", "steps_end", "question")


def tokens_digest(dataset: TrajectoryDataset) -> str:
    """A digest of tokens, step tokens and questions: data sets that differ in labels alone share their states."""
    digest = hashlib.blake2b(digest_size=16)
    for name in TOKEN_COLUMNS:
        digest.update(dataset.columns[name].tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Packed:
    """How the steps of a data set map to rows of states: whole questions, packed as prefix trees."""

    dataset: TrajectoryDataset
    max_tokens: int

    def batches(self) -> Iterator[np.ndarray]:
        """The trajectory numbers of each batch; the same whenever they are planned."""
        dataset = self.dataset
        budget = max(self.max_tokens, int(dataset.lengths.max()))
        everything = np.arange(len(dataset))
        units = PackingUnits.questions(everything, dataset.question, lambda i: dataset[i].input_ids, budget, share=True)
        return units.batches_in_order(budget)

    def make(self, members: np.ndarray) -> PackedBatch:
        pairs = [(int(i), self.dataset[int(i)]) for i in members]
        return pack(pairs, question=self.dataset.question[members], compare=False, labelled_only=False)

    def steps_of(self, batch: PackedBatch) -> np.ndarray:
        """The flat numbers of the batch's steps in the data set, in its order."""
        return np.concatenate([self.dataset.steps_of(i) for i in batch.members])


def compute_states(
    model: StepQModel,
    dataset: TrajectoryDataset,
    layers: Sequence[int],
    files: StateFiles,
    *,
    max_tokens: int,
    progress: bool,
    name: str,
) -> None:
    """Computes the states of all steps after each of `layers` and writes them into `files`.

    `model` ends at the highest of `layers`. The states are those before the final norm if that is a plain RMSNorm,
    which the fused op computes, and those after it otherwise. Interrupted at any moment, the same call continues after
    the last whole batch, to the same bytes. `name` names the data in messages.

    Raises PQMError if a file cannot be written, Diverged for states that are not finite.
    """
    packed = _Packed(dataset, max_tokens)
    dtype = dtype_name(model.classifier.dtype)
    inputs = {"layers": list(layers), "device": model.device.type}
    name_of_layers = hashlib.blake2b(repr(list(layers)).encode(), digest_size=6).hexdigest()
    journal = Journal(files.folder / f"layers-{name_of_layers}", inputs)
    written = _written(journal)
    written = written[: _intact_batches(files, layers, written)]
    row_of_step = np.full(len(dataset.columns["rows"]), -1, dtype=np.int64)
    rows = 0
    with ExitStack() as stack:
        stack.enter_context(journal.writing())
        bar = stack.enter_context(
            tqdm(total=len(dataset), unit="traj", desc=f"states of {name}", disable=not progress, dynamic_ncols=True)
        )
        outputs = {layer: stack.enter_context(_open(files, layer, written)) for layer in layers}
        recorder = stack.enter_context(Recorder(model, layers))
        steps = load_steps(
            ([members] for members in packed.batches()),
            packed.make,
            model.planner(),
            workers=0,
            pin=model.device.type == "cuda",
        )
        for number, [(batch, plan)] in enumerate(steps):
            tokens, row_in_batch = np.unique(batch.step_tokens.numpy(), return_inverse=True)
            row_of_step[packed.steps_of(batch)] = rows + row_in_batch
            rows += len(tokens)
            if number >= len(written):
                states = recorder.run(batch, plan, torch.from_numpy(tokens))
                parts = {}
                for layer, own in states.items():
                    if not own.isfinite().all():
                        raise Diverged(f"{name}: hidden states of layer {layer} are not finite; check the model")
                    data = own.contiguous().view(torch.uint8).numpy().tobytes()
                    _write(outputs[layer], data)
                    parts[str(layer)] = [len(data), Part.of(data).digest]
                written.append(parts)
                journal.append({"batch": number, "parts": parts})
            bar.update(batch.num_trajectories)
        files.write_steps(row_of_step)
        width = model.config.get_text_config().hidden_size
        files.finish({layer: _parts(written, layer) for layer in layers}, width, dtype)
    journal.remove()


def _written(journal: Journal) -> list[Parts]:
    """The parts of the first batches that the journal lists. One that was written again counts as it was last."""
    by_number: dict[int, Parts] = {}

    def take(_: int, row: dict[str, Any]) -> None:
        by_number[row["batch"]] = row["parts"]

    journal.replay(take)
    return [by_number[number] for number in itertools.takewhile(by_number.__contains__, itertools.count())]


def _parts(written: list[Parts], layer: int) -> list[Part]:
    return [Part(*batch[str(layer)]) for batch in written]


def _intact_batches(files: StateFiles, layers: Sequence[int], written: list[Parts]) -> int:
    """How many of these batches are whole in the files of all layers."""
    return min(count_intact(files.new(layer), _parts(written, layer)) for layer in layers)


def _open(files: StateFiles, layer: int, written: list[Parts]) -> Any:
    """The file of a layer, behind the batches that are whole."""
    path = files.new(layer)
    file = open(path, "r+b" if path.exists() else "x+b", buffering=0)  # noqa: SIM115 (closed by the caller)
    end = sum(part.size for part in _parts(written, layer))
    file.truncate(end)
    file.seek(end)
    return file


def _write(file: io.FileIO, data: bytes) -> None:
    try:
        write_all(file, data)
    except OSError as error:
        raise PQMError(
            f"{file.name}: the hidden states cannot be stored ({error.strerror}); make room there, or choose another "
            "--cache-dir, or fewer --layers"
        ) from error


class Recorder:
    """Takes the outputs of decoder layers while the model runs."""

    def __init__(self, model: StepQModel, layers: Sequence[int]):
        self.model, self.layers = model, layers
        self.norm: nn.Module | None = None
        if final_norm(model.backbone) is None:
            self.norm = norm_layer(model.backbone)
        self.taken: dict[int, torch.Tensor] = {}
        self.tokens = torch.zeros(0, dtype=torch.int64)
        self.hooks: list[Any] = []

    def __enter__(self) -> "Recorder":
        modules = decoder_layers(self.model.backbone, self.model.config)
        self.hooks = [modules[layer - 1].register_forward_hook(partial(self._take, layer)) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    @torch.no_grad()
    def run(self, batch: PackedBatch, plan: Any, tokens: torch.Tensor) -> dict[int, torch.Tensor]:
        """{layer: its states [len(tokens), D] on the host} of a batch on the host."""
        self.tokens, self.taken = tokens.to(self.model.device), {}
        self.model.eval()
        self.model.hidden(batch.to(self.model.device), plan.to(self.model.device))
        return {layer: self.taken[layer].cpu() for layer in self.layers}

    def _take(self, layer: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        states = (output[0] if isinstance(output, tuple) else output)[0]
        # the last layer may have computed only the rows that steps read, in the same order
        at_steps = states[: len(self.tokens)] if self._is_restricted(layer) else states.index_select(0, self.tokens)
        self.taken[layer] = at_steps if self.norm is None else self.norm(at_steps)

    def _is_restricted(self, layer: int) -> bool:
        depth = self.model.config.get_text_config().num_hidden_layers
        return self.model.step_rows_only and layer == depth


def check_layers(layers: Sequence[int], depth: int, model: str) -> tuple[int, ...]:
    """The layers in ascending order; up to eight of them, evenly spaced, if none is named. Raises PQMError for one that
    the model does not have."""
    if not layers:
        count = min(depth, 8)
        return tuple(round(depth * i / count) for i in range(1, count + 1))
    if too_deep := [layer for layer in layers if layer > depth]:
        raise PQMError(f"layers: {too_deep[0]} was given; {model} has {depth} decoder layers, counted from 1")
    return tuple(sorted(set(layers)))
