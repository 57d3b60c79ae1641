"""Padded batches: the published way, and a classifier of transformers with batches of similar length."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pqm_benchmarks.comparison.rounds import Setting
from pqm_benchmarks.score.ways.way import ScoringWay
from pqm_benchmarks.shared.workload import Questions, flat
from pqm_benchmarks.train.ways.models import random_model, randomise
from pqm_benchmarks.train.ways.ours import HEAD
from pqm_benchmarks.train.ways.padded import token_ids
from pqm_benchmarks.train.ways.reference import ValueModel
from pqm_benchmarks.train.ways.trl import padding_at_scale
from pqm_benchmarks.work.flops import RowCounts


@dataclass(frozen=True)
class PaddedBatch:
    """B solutions with S steps, padded on the right. The names are those of PackedBatch."""

    input_ids: Tensor  # [B, L] int64
    step_index: Tensor  # [S] int64, into B x L
    cu_steps: Tensor  # [B+1] int64
    members: tuple[int, ...]  # [B]

    def to(self, device: torch.device) -> "PaddedBatch":
        ids, rows = (x.to(device, non_blocking=True) for x in (self.input_ids, self.step_index))
        return replace(self, input_ids=ids, step_index=rows)


@dataclass(frozen=True)
class PaddedScoring:
    values: Callable[[Tensor], Tensor]
    """[B, L] token ids -> [B, L] values."""
    device: torch.device

    def ahead(self, batch: PaddedBatch) -> PaddedBatch:
        return batch.to(self.device)

    @torch.no_grad()
    def __call__(self, ready: PaddedBatch) -> Tensor:
        return self.values(ready.input_ids).flatten().index_select(0, ready.step_index).float()


def padded_batches(by_length: bool, questions: Questions, setting: Setting) -> Iterator[PaddedBatch]:
    """Batches of setting["batch"] solutions, in their order or the longest first."""
    trajectories = flat(questions)
    lengths = [len(t.input_ids) for t in trajectories]
    order = np.argsort([-n for n in lengths], kind="stable") if by_length else np.arange(len(lengths))
    for start in range(0, len(order), setting["batch"]):
        members = tuple(order[start : start + setting["batch"]].tolist())
        batch = [trajectories[i] for i in members]
        ids = token_ids(batch)
        step_index = np.concatenate([t.step_tokens + row * ids.shape[1] for row, t in enumerate(batch)])
        yield PaddedBatch(
            input_ids=torch.from_numpy(ids),
            step_index=torch.from_numpy(step_index).long(),
            cu_steps=torch.from_numpy(np.cumsum([0, *(len(t.step_tokens) for t in batch)])),
            members=members,
        )


def padded_rows(logits: bool, batches: Iterable[PaddedBatch]) -> RowCounts:
    """Counts the rows of the batches, padding included."""
    shapes = [batch.input_ids.shape for batch in batches]
    tokens = sum(rows * width for rows, width in shapes)
    pairs = sum(rows * width * (width + 1) // 2 for rows, width in shapes)
    return RowCounts(tokens, pairs, tokens, tokens, logits=logits)


def padded_excess(questions: Questions, setting: Setting) -> float:
    """Padding of these batches over the padding of batches chosen among thousands of solutions."""
    computed = padded_rows(False, padded_batches(True, questions, setting)).tokens
    return computed / sum(len(t.input_ids) for t in flat(questions)) / padding_at_scale(setting["batch"])


def build_published(config: Any, device: torch.device, dtype: torch.dtype) -> PaddedScoring:
    model = ValueModel(config, device, dtype).eval()
    randomise(nn.ModuleDict({"score": model.value}))  # gives it the weights that the head of a classifier has
    return PaddedScoring(lambda input_ids: model(input_ids)[1], device)


def build_classifier(config: Any, device: torch.device, dtype: torch.dtype) -> PaddedScoring:
    from transformers import AutoModelForTokenClassification

    model = random_model(AutoModelForTokenClassification, config, device, dtype, "sdpa", **HEAD).eval()
    return PaddedScoring(lambda input_ids: model(input_ids=input_ids).logits[..., 0], device)


PUBLISHED = ScoringWay(
    title="published",
    source="written afresh after WindyLee0822/Process_Q_Model (bon_eval_hf.py, value_model.py): batches of 4 in "
    "the order of the file, vocabulary logits in float32, hidden states of all layers, values of all tokens; "
    "without DeepSpeed's tensor parallelism, attention to padding, a cache of keys and values, and waiting for "
    "each batch",
    families=(({"batch": 4},),),
    usual={"batch": 4},
    batches=partial(padded_batches, False),
    rows=partial(padded_rows, True),
    build=build_published,
)
BY_LENGTH = ScoringWay(
    title="transformers, by length",
    source="a *ForTokenClassification of transformers, padded batches of like length without attention to padding",
    families=(tuple({"batch": batch} for batch in (256, 128, 64, 32, 16)),),
    usual={"batch": 64},
    batches=partial(padded_batches, True),
    rows=partial(padded_rows, False),
    build=build_classifier,
    excess=padded_excess,
)
