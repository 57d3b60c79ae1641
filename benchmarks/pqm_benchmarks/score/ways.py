"""Ways to score the same solutions: batches made on the host, a model that takes them, and what that computes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pqm_benchmarks.train.ways.models import random_model, randomise
from pqm_benchmarks.train.ways.ours import HEAD, packed_layout, q_model
from pqm_benchmarks.train.ways.padded import token_ids
from pqm_benchmarks.train.ways.reference import ValueModel
from pqm_benchmarks.train.ways.trl import padding_at_scale
from pqm_benchmarks.train.ways.way import Questions, Setting, flat
from pqm_benchmarks.work.run import Layout
from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.pack import PackedBatch, pack
from pqm_fast.model.attention import BatchPlan
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.layers import compile_layers


@dataclass(frozen=True)
class PaddedBatch:
    """B solutions with S steps, padded on the right; named as in PackedBatch."""

    input_ids: Tensor  # [B, L] int64
    step_index: Tensor  # [S] int64, into B x L
    cu_steps: Tensor  # [B+1] int64
    members: tuple[int, ...]  # [B]

    def to(self, device: torch.device) -> "PaddedBatch":
        ids, rows = (x.to(device, non_blocking=True) for x in (self.input_ids, self.step_index))
        return replace(self, input_ids=ids, step_index=rows)


Batch = PaddedBatch | PackedBatch


class Scoring(Protocol):
    """A model that scores."""

    def ahead(self, batch: Any) -> Any:
        """A batch of the host with all that has to be done before the device computes, on the device."""

    def __call__(self, ready: Any) -> Tensor:
        """Q-values [S] float32 of what `ahead` returned, on the device; waits for nothing."""


@dataclass(frozen=True)
class Way:
    title: str
    source: str
    """What it is after, and what is done in its favour."""
    families: tuple[tuple[Setting, ...], ...]
    """Tried from large batches to small ones."""
    usual: Setting
    """What is counted where nothing is timed."""
    batches: Callable[[Questions, Setting], Iterator[Batch]]
    """In turn, each made when it is asked for; `members` counts solutions through all questions."""
    layout: Callable[[Sequence[Any]], Layout]
    """What its batches compute. What fills a fixed token budget at its end is not in it."""
    build: Callable[[Any, torch.device, torch.dtype], Scoring]
    """From a transformers config, with random weights, the same in every way."""
    excess: Callable[[Questions, Setting], float] = lambda questions, setting: 1.0
    """Work over that for as many solutions out of a whole data set, from which batches can be chosen better."""


def score(way: Way, scoring: Scoring, questions: Questions, setting: Setting) -> list[np.ndarray]:
    """Q-values of the steps of every solution, as `Scorer` does it: a device works on a batch while the next ones are
    made, and is waited for at the end."""
    launched = [(batch, scoring(scoring.ahead(batch))) for batch in way.batches(questions, setting)]
    scores: list[np.ndarray] = [np.zeros(0)] * sum(map(len, questions))
    for batch, q in launched:
        for i, own in zip(batch.members, np.split(q.cpu().numpy(), batch.cu_steps[1:-1].tolist()), strict=True):
            scores[i] = own
    return scores


# ---- padded ---------------------------------------------------------------------------------------------------------


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
    """Of so many solutions, in their order, or the longest first."""
    trajectories = flat(questions)
    lengths = [len(t.input_ids) for t in trajectories]
    order = np.argsort([-n for n in lengths], kind="stable") if by_length else np.arange(len(lengths))
    for start in range(0, len(order), setting["batch"]):
        members = tuple(order[start : start + setting["batch"]].tolist())
        own = [trajectories[i] for i in members]
        ids = token_ids(own)
        yield PaddedBatch(
            torch.from_numpy(ids),
            torch.from_numpy(np.concatenate([t.step_tokens + row * ids.shape[1] for row, t in enumerate(own)])).long(),
            torch.from_numpy(np.cumsum([0, *(len(t.step_tokens) for t in own)])),
            members,
        )


def padded_layout(logits: bool, batches: Iterable[PaddedBatch]) -> Layout:
    shapes = [batch.input_ids.shape for batch in batches]
    tokens = sum(rows * width for rows, width in shapes)
    pairs = sum(rows * width * (width + 1) // 2 for rows, width in shapes)
    return Layout(tokens, pairs, tokens, tokens, logits=logits)


def padded_excess(questions: Questions, setting: Setting) -> float:
    computed = padded_layout(False, padded_batches(True, questions, setting)).tokens
    return computed / sum(len(t.input_ids) for t in flat(questions)) / padding_at_scale(setting["batch"])


def build_published(config: Any, device: torch.device, dtype: torch.dtype) -> PaddedScoring:
    model = ValueModel(config, device, dtype).eval()
    randomise(nn.ModuleDict({"score": model.value}))  # the weights that the head of a classifier has
    return PaddedScoring(lambda input_ids: model(input_ids)[1], device)


def build_classifier(config: Any, device: torch.device, dtype: torch.dtype) -> PaddedScoring:
    from transformers import AutoModelForTokenClassification

    model = random_model(AutoModelForTokenClassification, config, device, dtype, "sdpa", **HEAD).eval()
    return PaddedScoring(lambda input_ids: model(input_ids=input_ids).logits[..., 0], device)


# ---- ours -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Switches:
    tree: bool = False
    step_rows: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class OurScoring:
    """`StepQModel.scores` in two parts."""

    model: StepQModel

    def ahead(self, batch: PackedBatch) -> tuple[PackedBatch, BatchPlan]:
        plan = self.model.planner()(batch)
        return batch.to(self.model.device), plan.to(self.model.device)

    @torch.no_grad()
    def __call__(self, ready: tuple[PackedBatch, BatchPlan]) -> Tensor:
        batch, plan = ready
        return self.model.head(self.model.hidden(batch, plan).index_select(0, plan.head.step_index).float()).squeeze(-1)


def our_batches(switches: Switches, questions: Questions, setting: Setting) -> Iterator[PackedBatch]:
    """Those of `Scorer` with this `max_tokens`; for compiled layers filled up to that, so that all have one shape."""
    trajectories = flat(questions)
    lengths = np.array([len(t.input_ids) for t in trajectories])
    everything, question = np.arange(len(trajectories)), None
    budget = max(setting["max_tokens"], int(lengths.max()))
    units = PackingUnits.single(everything, lengths)
    if switches.tree:
        question = np.repeat(np.arange(len(questions)), [len(own) for own in questions])
        units = PackingUnits.prefix_trees(everything, question, lambda i: trajectories[i].input_ids, budget)
    for members in units.batches_in_order(budget):
        yield pack(
            [(int(i), trajectories[i]) for i in members],
            question=None if question is None else question[members],
            pad_to=budget if switches.compiled else None,
            labelled_only=False,
        )


def our_layout(switches: Switches, batches: Sequence[PackedBatch]) -> Layout:
    return packed_layout(batches, switches.step_rows)


def build_ours(switches: Switches, config: Any, device: torch.device, dtype: torch.dtype) -> OurScoring:
    model = q_model(config, device, dtype, switches.step_rows).eval()
    if switches.compiled:
        compile_layers(model)
    return OurScoring(model)


def _ours(title: str, source: str, **switches: bool) -> Way:
    on = Switches(**switches)
    sizes = (32768, 16384) if on.compiled else (65536, 32768, 16384, 8192)
    return Way(
        title,
        source,
        (tuple({"max_tokens": size} for size in sizes),),
        {"max_tokens": 16384},
        partial(our_batches, on),
        partial(our_layout, on),
        partial(build_ours, on),
    )


WAYS: dict[str, Way] = {
    "published": Way(
        title="published",
        source="written afresh after WindyLee0822/Process_Q_Model (bon_eval_hf.py, value_model.py): batches of 4 in "
        "the order of the file, vocabulary logits in float32, hidden states of all layers, values of all tokens; "
        "without DeepSpeed's tensor parallelism, attention to padding, a cache of keys and values, and waiting for "
        "each batch",
        families=(({"batch": 4},),),
        usual={"batch": 4},
        batches=partial(padded_batches, False),
        layout=partial(padded_layout, True),
        build=build_published,
    ),
    "padded": Way(
        title="transformers, by length",
        source="a *ForTokenClassification of transformers, padded batches of like length without attention to padding",
        families=(tuple({"batch": batch} for batch in (256, 128, 64, 32, 16)),),
        usual={"batch": 64},
        batches=partial(padded_batches, True),
        layout=partial(padded_layout, False),
        build=build_classifier,
        excess=padded_excess,
    ),
    "packed": _ours("packed", "no padding"),
    "packed_rows": _ours("packed + step rows", "last layer where steps end: what Scorer does", step_rows=True),
    "tree": _ours("tree", "shared prefixes once", tree=True),
    "tree_rows": _ours(
        "tree + step rows: pqm-fast", "what Scorer does with prefix_tree=True", tree=True, step_rows=True
    ),
    "compiled": _ours(
        "+ compiled layers",
        "each layer by torch.compile, batches filled up to one size; Scorer does not do that",
        tree=True,
        step_rows=True,
        compiled=True,
    ),
}
