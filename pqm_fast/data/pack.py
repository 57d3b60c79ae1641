"""Packing: micro-batches without padding, whose trajectories are laid end to end within a budget of tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pqm_fast.data.questions import group_by_question
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.data.tree import lay_out


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch, as data hands it to the model.

    Shapes: T tokens, S listed steps, B trajectories, G sequences. Without prefix trees, a sequence is a trajectory. In
    a batch of prefix trees it is the suffix of tokens that a trajectory does not share with the one before it, and a
    trajectory that shares all its tokens has no sequence. Sequences are laid end to end from row 0. Each of them
    attends to a path of rows: the tokens of its whole trajectory. Rows after the last sequence are padding. The steps
    of trajectory b are cu_steps[b]:cu_steps[b+1].
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
        return replace(self, **moved)


def pack(
    trajectories: Iterable[tuple[int, Trajectory]],
    *,
    question: np.ndarray | None = None,
    pad_to: int | None = None,
    labelled_only: bool = True,
) -> PackedBatch:
    """Lays `(number, trajectory)` pairs end to end; with `question` [B], in prefix trees of those with equal numbers.

    `pad_to` fills the token axis up to a fixed size, so that every batch has the same shape. `labelled_only` leaves
    out steps without a label (training); otherwise every step is listed (scoring). Raises ValueError for more tokens
    than `pad_to`.
    """
    pairs = list(trajectories)
    groups = [[pair] for pair in pairs]
    if question is not None:
        groups = [[pairs[i] for i in group] for group in group_by_question(question)]
    return pack_trees(groups, pad_to=pad_to, labelled_only=labelled_only)


def pack_trees(
    groups: Iterable[Sequence[tuple[int, Trajectory]]], *, pad_to: int | None = None, labelled_only: bool = True
) -> PackedBatch:
    """Lays out a prefix tree for each group of `(number, trajectory)` pairs: tokens that they share occur once.

    The trajectories of a group are sorted by their tokens. One row may belong to steps of several trajectories:
    `step_tokens` then has duplicates. `pad_to`, `labelled_only` and errors as in `pack`.
    """
    ids, positions, paths, step_tokens, labels, counts, members = [], [], [], [], [], [], []
    lengths, path_lengths = [], []
    offset = 0
    for group in groups:
        layout = lay_out([t.input_ids for _, t in group])
        ids.append(layout.input_ids)
        positions.append(layout.position_ids)
        for i, path, suffix_length in zip(layout.order, layout.paths, layout.suffix_lengths.tolist(), strict=True):
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
        offset += len(layout.input_ids)
    if pad_to is not None:
        if offset > pad_to:
            raise ValueError(f"{offset} tokens do not fit a batch of {pad_to}")
        ids.append(np.zeros(pad_to - offset, dtype=np.int64))
        positions.append(np.zeros(pad_to - offset, dtype=np.int64))

    def flat(parts: list[np.ndarray], dtype: type) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False))

    return PackedBatch(
        input_ids=flat(ids, np.int64),
        position_ids=flat(positions, np.int64),
        lengths=tuple(lengths),
        step_tokens=flat(step_tokens, np.int64),
        labels=flat(labels, np.float32),
        cu_steps=torch.from_numpy(np.cumsum([0, *counts]).astype(np.int32)),
        members=tuple(members),
        path_lengths=tuple(path_lengths),
        paths=flat(paths, np.int64) if lengths != path_lengths else None,
    )
