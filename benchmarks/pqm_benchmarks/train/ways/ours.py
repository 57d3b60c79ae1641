"""pqm-fast itself, with one switch more at a time. Everything here is called as `pqm_fast.train` calls it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from pqm_benchmarks.comparison.rounds import Setting
from pqm_benchmarks.shared.workload import Questions, flat
from pqm_benchmarks.train.ways.models import random_model
from pqm_benchmarks.train.ways.optimizers import adamw
from pqm_benchmarks.train.ways.way import CLIP, LEARNING_RATE, ZETA, PassPlan, TrainingWay, host
from pqm_benchmarks.work.flops import RowCounts
from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.pack import PackedBatch, pack
from pqm_fast.model.attention.packed import PACKED_ATTENTION
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.guard import StepGuard
from pqm_fast.train.layers import compile_layers, decoder_layers, recompute
from pqm_fast.train.optim import make_optimizer, sum_gradients_in_float32
from pqm_fast.train.sharding import Part, parts
from pqm_fast.train.step import Objective, Planned, train_step

BLOCK = 128  # token budgets are multiples of this: attention kernels take 128 queries at a time


@dataclass(frozen=True)
class Switches:
    """The switches that are on; each way has one more than the way before it."""

    tree: bool = False
    step_rows: bool = False
    compiled: bool = False
    fused_update: bool = False


@dataclass(frozen=True)
class OurStep:
    model: StepQModel
    own: list[Part]
    optimizer: Any
    guard: StepGuard | None

    def ahead(self, batches: list[PackedBatch]) -> list[Planned]:
        planner = self.model.planner()
        plans = [planner(batch) for batch in batches]
        if self.model.device.type == "cuda":
            plans = [plan.pin_memory() for plan in plans]
        return list(zip(batches, plans, strict=True))

    def __call__(self, batches: list[Planned]) -> Callable[[], float]:
        objective = Objective("rank", ZETA, CLIP)
        pending = train_step(self.model, self.optimizer, batches, objective, own=self.own, guard=self.guard)
        return lambda: pending.wait().loss


HEAD = {"num_labels": 1, "classifier_dropout": 0.0, "problem_type": "regression"}


def q_model(config: Any, device: torch.device, dtype: torch.dtype, step_rows: bool) -> StepQModel:
    from transformers import AutoModelForTokenClassification

    classifier = random_model(AutoModelForTokenClassification, config, device, dtype, PACKED_ATTENTION, **HEAD)
    return StepQModel(classifier, step_rows_only=step_rows)


def build(switches: Switches, config: Any, device: torch.device, dtype: torch.dtype, setting: Setting) -> OurStep:
    model = q_model(config, device, dtype, switches.step_rows)
    if switches.compiled:
        compile_layers(model)
    recompute(model, round(setting["recompute"] * len(decoder_layers(model))))
    if setting["micro_batches"] > 1:
        sum_gradients_in_float32(model)
    own = parts(model)
    if switches.fused_update:
        update = TrainConfig(model="", data=(), out="", learning_rate=LEARNING_RATE)
        return OurStep(model, own, make_optimizer(own, update), StepGuard(0.0, device))
    return OurStep(model, own, adamw(model.parameters()), None)


def plan(switches: Switches, questions: Questions, steps: int, setting: Setting, device: torch.device) -> PassPlan:
    """Uses the smallest token budget with which this many micro-batches hold all trajectories. With any other budget
    the last batch of so few trajectories would be half empty, while the last batch of a data set is one of
    thousands."""
    trajectories = flat(questions)
    question = np.repeat(np.arange(len(questions)), [len(solutions) for solutions in questions])
    members, lengths = np.arange(len(trajectories)), np.array([len(t.input_ids) for t in trajectories])
    count = steps * setting["micro_batches"]

    def units(budget: int) -> PackingUnits:
        if not switches.tree:
            return PackingUnits.single(members, lengths)
        return PackingUnits.questions(members, question, lambda i: trajectories[i].input_ids, budget, share=True)

    least = max(int(lengths.max()), int(units(int(lengths.sum())).sizes.sum()) // count)
    budget = -(-least // BLOCK) * BLOCK
    while len(batches := units(budget).batches(budget)) > count:
        budget += BLOCK
    packed = [
        pack(
            [(i, trajectories[i]) for i in batch.tolist()],
            question=question[batch] if switches.tree else None,
            compare=False,
            pad_to=budget if device.type == "cuda" or switches.compiled else None,
        )
        for batch in batches
    ]
    rows = packed_rows(packed, switches.step_rows)
    pinned = [_pinned(batch, device) for batch in packed]
    size = setting["micro_batches"]
    planned = [pinned[i : i + size] for i in range(0, len(pinned), size)]
    notes = {"micro_batch_tokens": budget, "filled": rows.tokens / (budget * len(packed))}
    return PassPlan(planned, rows, notes=notes)


def packed_rows(batches: Sequence[PackedBatch], step_rows: bool) -> RowCounts:
    """Counts the rows of packed batches, without their padding."""
    seen_by_token = [batch.position_ids.numpy()[: batch.num_tokens] + 1 for batch in batches]
    tokens, pairs = sum(map(len, seen_by_token)), sum(int(seen.sum()) for seen in seen_by_token)
    scored = sum(batch.num_steps for batch in batches)
    if not step_rows:
        return RowCounts(tokens, pairs, tokens, scored)
    step_ends = sum(len(np.unique(batch.step_tokens.numpy())) for batch in batches)
    return RowCounts(tokens, pairs, step_ends, scored)


def _pinned(batch: PackedBatch, device: torch.device) -> PackedBatch:
    tensors = {name: host(x.numpy(), device) for name, x in vars(batch).items() if torch.is_tensor(x)}
    return replace(batch, **tensors)  # type: ignore[arg-type]


def _way(title: str, source: str, switches: Switches, precision: str) -> TrainingWay:
    families = (
        tuple({"micro_batches": count, "recompute": 0.0} for count in (1, 2, 3, 4, 6)),
        tuple({"micro_batches": count, "recompute": 0.5} for count in (1, 2, 3, 4, 6)),
        tuple({"micro_batches": count, "recompute": 1.0} for count in (1, 2, 3)),
    )
    return TrainingWay(title, source, precision, families, partial(plan, switches), partial(build, switches))


PLAIN_ADAMW = "bfloat16 weights, float32 master weights and moments"
LADDER = {
    "packed": _way("plain packing", "no padding, no logits, nothing computed twice", Switches(), PLAIN_ADAMW),
    "tree": _way("+ prefix trees", "shared prefixes once", Switches(tree=True), PLAIN_ADAMW),
    "step_rows": _way("+ step rows", "last layer where steps end", Switches(tree=True, step_rows=True), PLAIN_ADAMW),
    "compiled": _way(
        "+ compiled layers",
        "each layer by torch.compile",
        Switches(tree=True, step_rows=True, compiled=True),
        PLAIN_ADAMW,
    ),
    "all": _way(
        "+ fused update: pqm-fast",
        "AdamW of pqm_kernels",
        Switches(tree=True, step_rows=True, compiled=True, fused_update=True),
        "bfloat16 weights, the other half of float32 master weights beside them",
    ),
}
