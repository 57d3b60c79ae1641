"""Micro-batches without padding: trajectories laid end to end within a fixed token budget."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pqm_fast.data.trajectory import Trajectory
from pqm_fast.data.tree import by_question, lay_out


@dataclass(frozen=True)
class PackedBatch:
    """What crosses the border between data and model.

    Shapes: T tokens, S listed steps, B trajectories, G sequences. A sequence is a trajectory or, in a batch of prefix
    trees, the tokens that a trajectory does not share with the one before it; a trajectory that shares all of them has
    no sequence. Sequences stand end to end from row 0 on. Each sees a path of rows, its whole trajectory. The rows
    behind the last sequence are padding. Trajectory b owns steps cu_steps[b]:cu_steps[b+1].
    """

    input_ids: torch.Tensor  # [T] int64
    position_ids: torch.Tensor  # [T] int64, from 0 within each trajectory (its depth in a tree)
    lengths: tuple[int, ...]  # [G] rows of each sequence
    step_tokens: torch.Tensor  # [S] int64, the row of each step's Q-value
    labels: torch.Tensor  # [S] float32, NaN where a step has no label (scoring only)
    cu_steps: torch.Tensor  # [B+1] int32
    members: tuple[int, ...]  # [B] which trajectory of the data set each one is
    path_lengths: tuple[int, ...]  # [G] rows of each path
    # [sum of path_lengths] int64 on the host, path after path; None if each is its sequence's own rows
    paths: torch.Tensor | None = None

    @property
    def num_trajectories(self) -> int:
        return self.cu_steps.shape[0] - 1

    @property
    def num_steps(self) -> int:
        return self.step_tokens.shape[0]

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(self.lengths)

    def to(self, device: torch.device | str) -> "PackedBatch":
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True)
            for k, v in vars(self).items()
            if torch.is_tensor(v) and k != "paths"  # which only a plan reads, on the host
        }
        return replace(self, **moved)


def pack(
    trajectories: Iterable[tuple[int, Trajectory]],
    *,
    question: np.ndarray | None = None,
    pad_to: int | None = None,
    labelled_only: bool = True,
) -> PackedBatch:
    """Lays `(number, trajectory)` pairs end to end, or with `question` [B] in prefix trees over those of equal number.

    `pad_to` fills the token axis up to a fixed size, so that every batch has the same shape. `labelled_only` leaves
    out steps without a label (training); otherwise every step is listed (scoring).
    """
    pairs = list(trajectories)
    groups = [[pair] for pair in pairs]
    if question is not None:
        groups = [[pairs[i] for i in group] for group in by_question(question)]
    return pack_trees(groups, pad_to=pad_to, labelled_only=labelled_only)


def pack_trees(
    groups: Iterable[Sequence[tuple[int, Trajectory]]], *, pad_to: int | None = None, labelled_only: bool = True
) -> PackedBatch:
    """Lays `(number, trajectory)` pairs out in prefix trees: what those of a group share stands there once.

    The trajectories of a group follow each other in the order of their tokens. One row may serve steps of several:
    `step_tokens` then has duplicates. `pad_to` and `labelled_only` as in `pack`.
    """
    ids, positions, paths, rows, labels, counts, members = [], [], [], [], [], [], []
    lengths, path_lengths = [], []
    offset = 0
    for group in groups:
        layout = lay_out([t.input_ids for _, t in group])
        ids.append(layout.input_ids)
        positions.append(layout.position_ids)
        for i, path, own in zip(layout.order, layout.paths, layout.own.tolist(), strict=True):
            number, t = group[i]
            if own:
                lengths.append(own)
                path_lengths.append(len(path))
                paths.append(path + offset)
            keep = ~np.isnan(t.labels) if labelled_only else np.ones(len(t.labels), dtype=bool)
            rows.append(path[t.step_tokens[keep]] + offset)
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
        step_tokens=flat(rows, np.int64),
        labels=flat(labels, np.float32),
        cu_steps=torch.from_numpy(np.cumsum([0, *counts]).astype(np.int32)),
        members=tuple(members),
        path_lengths=tuple(path_lengths),
        paths=flat(paths, np.int64) if lengths != path_lengths else None,
    )
