"""Packing: micro-batches without padding, whose trajectories are laid end to end within a budget of tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pqm_kernels import Siblings, siblings

from pqm_fast.data.questions import group_by_question
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.data.tree import laid_apart, lay_out


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch, as data hands it to the model.

    Shapes: T tokens, S listed steps, B trajectories, G sequences, Q questions. Without prefix trees, a sequence is a
    trajectory. In a batch of prefix trees it is the suffix of tokens that a trajectory does not share with the one
    before it, and a trajectory that shares all its tokens has no sequence. Sequences are laid end to end from row 0.
    Each of them attends to a path of rows: the tokens of its whole trajectory. Rows after the last sequence are
    padding. The steps of trajectory b are cu_steps[b]:cu_steps[b+1].

    A batch of whole questions can also have what a loss needs to compare their solutions: the fields from `cu_groups`
    on, which are None in other batches. The solutions of question g are the trajectories cu_groups[g]:cu_groups[g+1].
    """

    input_ids: torch.Tensor  # [T] int64
    position_ids: torch.Tensor  # [T] int64, from 0 within each trajectory (the depth in its tree)
    lengths: tuple[int, ...]  # [G] rows of each sequence
    step_tokens: torch.Tensor  # [S] int64, the row of each step's Q-value
    labels: torch.Tensor  # [S] float32, NaN for a step without a label (only when scoring)
    cu_steps: torch.Tensor  # [B+1] int32
    members: tuple[int, ...]  # [B] number of each trajectory in its data set
    path_lengths: tuple[int, ...]  # [G] rows of each path
    # [sum of path_lengths] int64 on the host, path after path; None if each path is the rows of its sequence
    paths: torch.Tensor | None = None
    cu_groups: torch.Tensor | None = None  # [Q+1] int32
    # [S] int32, the node of its question's prefix tree that a step continues: the token at which the step before it is
    # read, whether that is listed or not, and for a first step -1, the question
    parent: torch.Tensor | None = None
    siblings: Siblings | None = None  # the steps with the same parent: three tensors [S] int32
    outcomes: torch.Tensor | None = None  # [B] float32: 1 right, 0 wrong, or between them; NaN unknown

    @property
    def num_trajectories(self) -> int:
        return self.cu_steps.shape[0] - 1

    @property
    def num_steps(self) -> int:
        return self.step_tokens.shape[0]

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return sum(self.lengths)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """A copy on `device`, except for `paths`, which only batch plans read, on the host."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if torch.is_tensor(value) and name != "paths"
        }
        if self.siblings is not None:
            moved["siblings"] = Siblings(*(column.to(device, non_blocking=True) for column in self.siblings))
        return replace(self, **moved)


def pack(
    trajectories: Iterable[tuple[int, Trajectory]],
    *,
    question: np.ndarray | None = None,
    share: bool = True,
    compare: bool = True,
    pad_to: int | None = None,
    labelled_only: bool = True,
) -> PackedBatch:
    """Lays `(number, trajectory)` pairs end to end; with `question` [B], those with equal numbers together, as a group.

    `share`: a group is laid out as a prefix tree; otherwise its trajectories have no row in common, in the same order.
    `compare`: the batch also has what a loss needs to compare the trajectories of a group.
    `pad_to` fills the token axis up to a fixed size, so that every batch has the same shape. `labelled_only` leaves
    out steps without a label; otherwise every step is listed (scoring, and losses that do not read labels). Raises
    ValueError for more tokens than `pad_to`.
    """
    pairs = list(trajectories)
    if question is None:
        return _pack([[pair] for pair in pairs], True, pad_to, labelled_only, compared=False)
    groups = [[pairs[i] for i in group] for group in group_by_question(question)]
    return _pack(groups, share, pad_to, labelled_only, compared=compare)


def pack_trees(
    groups: Iterable[Sequence[tuple[int, Trajectory]]], *, pad_to: int | None = None, labelled_only: bool = True
) -> PackedBatch:
    """Lays out a prefix tree for each group of `(number, trajectory)` pairs: tokens that they share occur once.

    The trajectories of a group are sorted by their tokens. One row may belong to steps of several trajectories:
    `step_tokens` then has duplicates. `pad_to`, `labelled_only` and errors as in `pack`.
    """
    return _pack(groups, True, pad_to, labelled_only, compared=True)


def _pack(
    groups: Iterable[Sequence[tuple[int, Trajectory]]],
    share: bool,
    pad_to: int | None,
    labelled_only: bool,
    *,
    compared: bool,
) -> PackedBatch:
    """`compared`: with the fields that compare the trajectories of a group."""
    ids, positions, paths, step_tokens, labels, counts, members = [], [], [], [], [], [], []
    lengths, path_lengths = [], []
    group_sizes, parents, outcomes = [], [], []
    offset = 0
    for group in groups:
        tree = lay_out([t.input_ids for _, t in group])
        layout = tree if share else laid_apart(tree)
        ids.append(layout.input_ids)
        positions.append(layout.position_ids)
        columns = (layout.order, layout.paths, layout.suffix_lengths.tolist(), tree.paths)
        for i, path, suffix_length, nodes in zip(*columns, strict=True):
            number, t = group[i]
            if suffix_length:
                lengths.append(suffix_length)
                path_lengths.append(len(path))
                paths.append(path + offset)
            keep = ~np.isnan(t.labels) if labelled_only else np.ones(len(t.labels), dtype=bool)
            step_tokens.append(path[t.step_tokens[keep]] + offset)
            labels.append(t.labels[keep])
            counts.append(int(keep.sum()))
            members.append(int(number))
            if compared:
                parents.append(np.concatenate([[-1], nodes[t.step_tokens]])[:-1][keep])
                outcomes.append(t.outcome)
        group_sizes.append(len(group))
        offset += len(layout.input_ids)
    if pad_to is not None:
        if offset > pad_to:
            raise ValueError(f"{offset} tokens do not fit a batch of {pad_to}")
        ids.append(np.zeros(pad_to - offset, dtype=np.int64))
        positions.append(np.zeros(pad_to - offset, dtype=np.int64))

    def flat(parts: list[np.ndarray], dtype: type) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False))

    batch = PackedBatch(
        input_ids=flat(ids, np.int64),
        position_ids=flat(positions, np.int64),
        lengths=tuple(lengths),
        step_tokens=flat(step_tokens, np.int64),
        labels=flat(labels, np.float32),
        cu_steps=_ends(counts),
        members=tuple(members),
        path_lengths=tuple(path_lengths),
        paths=flat(paths, np.int64) if lengths != path_lengths else None,
    )
    if not compared:
        return batch
    cu_groups, parent = _ends(group_sizes), flat(parents, np.int32)
    return replace(
        batch,
        cu_groups=cu_groups,
        parent=parent,
        siblings=siblings(parent, batch.cu_steps, cu_groups),
        outcomes=torch.tensor(outcomes, dtype=torch.float32),
    )


def _ends(counts: list[int]) -> torch.Tensor:
    """[len(counts) + 1] int32: where each part begins, and the end of the last."""
    return torch.from_numpy(np.cumsum([0, *counts]).astype(np.int32))
