"""pqm-fast itself: packed batches and prefix trees, as `Scorer` computes them, with one switch more at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqm_benchmarks.comparison.rounds import Setting
from pqm_benchmarks.score.ways.way import ScoringWay
from pqm_benchmarks.shared.workload import Questions, flat
from pqm_benchmarks.train.ways.ours import packed_rows, q_model
from pqm_benchmarks.work.flops import RowCounts
from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.pack import PackedBatch, pack
from pqm_fast.model.attention import BatchPlan
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.layers import compile_layers


@dataclass(frozen=True)
class Switches:
    """The switches that are on."""

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
    """The batches of `Scorer` with this `max_tokens`. For compiled layers they are filled up to it, so that all have
    one shape."""
    trajectories = flat(questions)
    lengths = np.array([len(t.input_ids) for t in trajectories])
    everything, question = np.arange(len(trajectories)), None
    budget = max(setting["max_tokens"], int(lengths.max()))
    units = PackingUnits.single(everything, lengths)
    if switches.tree:
        question = np.repeat(np.arange(len(questions)), [len(solutions) for solutions in questions])
        units = PackingUnits.questions(everything, question, lambda i: trajectories[i].input_ids, budget, share=True)
    for members in units.batches_in_order(budget):
        yield pack(
            [(int(i), trajectories[i]) for i in members],
            question=None if question is None else question[members],
            compare=False,
            pad_to=budget if switches.compiled else None,
            labelled_only=False,
        )


def our_rows(switches: Switches, batches: Sequence[PackedBatch]) -> RowCounts:
    return packed_rows(batches, switches.step_rows)


def build_ours(switches: Switches, config: Any, device: torch.device, dtype: torch.dtype) -> OurScoring:
    model = q_model(config, device, dtype, switches.step_rows).eval()
    if switches.compiled:
        compile_layers(model)
    return OurScoring(model)


def _way(title: str, source: str, switches: Switches) -> ScoringWay:
    sizes = (32768, 16384) if switches.compiled else (65536, 32768, 16384, 8192)
    return ScoringWay(
        title=title,
        source=source,
        families=(tuple({"max_tokens": size} for size in sizes),),
        usual={"max_tokens": 16384},
        batches=partial(our_batches, switches),
        rows=partial(our_rows, switches),
        build=partial(build_ours, switches),
    )


LADDER = {
    "packed": _way("packed", "no padding", Switches()),
    "packed_rows": _way("packed + step rows", "last layer where steps end: what Scorer does", Switches(step_rows=True)),
    "tree": _way("tree", "shared prefixes once", Switches(tree=True)),
    "tree_rows": _way(
        "tree + step rows: pqm-fast",
        "what Scorer does with prefix_tree=True",
        Switches(tree=True, step_rows=True),
    ),
    "compiled": _way(
        "+ compiled layers",
        "each layer by torch.compile, batches filled up to one size; Scorer does not do that",
        Switches(tree=True, step_rows=True, compiled=True),
    ),
}
