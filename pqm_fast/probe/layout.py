"""The batches of a head's training: fixed sets of whole questions, whose states lie side by side in memory.

The batches of a seed are drawn once. The rows that a batch reads are a slice of the states, so that the fused op reads
neighbouring memory and its backward visits no other row. Index tensors are made once for all layers, margins and rates.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pqm_kernels import Siblings, StepsByRow, steps_by_row

from pqm_fast.data.pack import PackedBatch
from pqm_fast.data.questions import group_by_question
from pqm_fast.probe.frozen import Probed
from pqm_fast.train.split import Split


@dataclass(frozen=True)
class HeadBatch:
    """What the loss of one batch reads besides its rows, on the device; shapes as in `step_loss`."""

    rows: slice
    """Its rows in the states of the layout."""
    step_index: torch.Tensor
    steps_by_row: StepsByRow
    labels: torch.Tensor
    cu_steps: torch.Tensor
    cu_groups: torch.Tensor | None
    siblings: Siblings | None
    outcomes: torch.Tensor | None
    members: tuple[int, ...]
    """The number of each trajectory in its data set."""


@dataclass(frozen=True)
class Layout:
    """Batches, and the rows of the cached states that they read, batch after batch."""

    rows: torch.Tensor
    """[R] int64 on the host."""
    batches: list[HeadBatch]

    def take(self, states: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The states [R, D] of the batches on the device, from those of a data set [rows, D]. On a CPU they are
        float32, because it would convert them in every step."""
        taken = states.index_select(0, self.rows)
        return taken.float() if device.type == "cpu" else taken.to(device)


def training_layout(probed: Probed, split: Split, batch_steps: int, seed: int, device: torch.device) -> Layout:
    """Batches of about `batch_steps` steps, of whole questions in an order drawn with `seed`. A question with more is a
    batch by itself."""
    groups = group_by_question(probed.dataset.question[split.indices])
    order = np.random.default_rng([seed, 3]).permutation(len(groups))
    return _layout(probed, split, _joined(split, (split.indices[groups[i]] for i in order), batch_steps), device)


def held_out_layout(probed: Probed, split: Split, batch_steps: int, device: torch.device) -> Layout:
    """Batches in the order of the questions."""
    groups = group_by_question(probed.dataset.question[split.indices])
    return _layout(probed, split, _joined(split, (split.indices[group] for group in groups), batch_steps), device)


def _joined(split: Split, questions: Iterable[np.ndarray], batch_steps: int) -> Iterator[np.ndarray]:
    """Trajectory numbers of neighbouring questions, as many as have `batch_steps` listed steps."""
    members: list[np.ndarray] = []
    total = 0
    for question in questions:
        steps = int(split.listed_steps[question].sum())
        if members and total + steps > batch_steps:
            yield np.concatenate(members)
            members, total = [], 0
        members.append(question)
        total += steps
    if members:
        yield np.concatenate(members)


def _layout(probed: Probed, split: Split, batches: Iterable[np.ndarray], device: torch.device) -> Layout:
    rows, made, start = [], [], 0
    for members in batches:
        batch = split.pack(members)
        own_rows, step_index = np.unique(probed.row_of_step[_flat_steps(split, batch)], return_inverse=True)
        rows.append(own_rows)
        made.append(_head_batch(batch, torch.from_numpy(step_index), start, len(own_rows), device))
        start += len(own_rows)
    return Layout(torch.from_numpy(np.concatenate(rows)), made)


def _flat_steps(split: Split, batch: PackedBatch) -> np.ndarray:
    """The numbers in the data set, flat, of the steps that the batch lists."""
    steps = np.concatenate([split.dataset.steps_of(i) for i in batch.members])
    return steps if split.every_step else steps[~np.isnan(split.dataset.columns["labels"][steps])]


def _head_batch(
    batch: PackedBatch, step_index: torch.Tensor, start: int, num_rows: int, device: torch.device
) -> HeadBatch:
    moved = batch.to(device)
    step_index = step_index.to(device)
    labels = moved.labels
    return HeadBatch(
        rows=slice(start, start + num_rows),
        step_index=step_index,
        steps_by_row=steps_by_row(step_index, num_rows),
        labels=labels,
        cu_steps=moved.cu_steps,
        cu_groups=moved.cu_groups,
        siblings=moved.siblings,
        outcomes=moved.outcomes,
        members=batch.members,
    )
