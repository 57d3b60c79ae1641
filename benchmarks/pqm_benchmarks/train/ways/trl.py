"""The training step of TRL 1.13.0's PRMTrainer, reimplemented, at the best of its settings.

It is a `*ForTokenClassification` of transformers with two labels and its own loss. Trajectories are padded to the
longest of their batch, weights are float32 under bfloat16 autocast, AdamW is fused, and there is no dropout. It has
these settings: trajectories are grouped by length (its default is random), the batch size is the fastest, and gradient
checkpointing is on (its default) or off.
"""

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqm_benchmarks.comparison.rounds import Setting
from pqm_benchmarks.shared.workload import Questions, flat, make_workload
from pqm_benchmarks.train.ways.models import random_model, recompute_layers
from pqm_benchmarks.train.ways.optimizers import adamw
from pqm_benchmarks.train.ways.padded import IGNORED, padded_rows, stack, token_ids
from pqm_benchmarks.train.ways.plain_step import MicroBatch, PlainStep, spread
from pqm_benchmarks.train.ways.way import PassPlan, TrainingWay, host

MANY_QUESTIONS = 145  # 3,190 trajectories: the sampler sorts 50 batches at a time, of 64 at most here


def build(config: Any, device: torch.device, dtype: torch.dtype, setting: Setting) -> PlainStep:
    from transformers import AutoModelForTokenClassification

    mixed = dtype == torch.bfloat16
    weights = torch.float32 if mixed else dtype
    model = random_model(
        AutoModelForTokenClassification, config, device, weights, "sdpa", num_labels=2, classifier_dropout=0.0
    )
    if setting["recompute"]:
        recompute_layers(model)

    def loss(input_ids: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext():
            return model(input_ids=input_ids, labels=labels).loss

    learned = list(model.parameters())
    return PlainStep(loss, learned, adamw(learned), device)


def plan(questions: Questions, steps: int, setting: Setting, device: torch.device) -> PassPlan:
    """Batches of similar length, in random order."""
    trajectories = sorted(flat(questions), key=lambda t: -len(t.input_ids))
    size = setting["batch"]
    batches = [trajectories[i : i + size] for i in range(0, len(trajectories), size)]
    batches = [batches[i] for i in np.random.default_rng(0).permutation(len(batches))]

    def micro_batch(batch: list, weight: float) -> MicroBatch:
        labels = []
        for t in batch:
            token_labels = np.full(len(t.input_ids), IGNORED)
            token_labels[t.step_tokens] = t.labels
            labels.append(token_labels)
        arrays = {"input_ids": token_ids(batch), "labels": stack(labels, IGNORED)}
        return MicroBatch({name: host(array, device) for name, array in arrays.items()}, weight)

    planned = [[micro_batch(batch, 1 / len(step)) for batch in step] for step in spread(batches, steps)]
    computed = padded_rows(batches, values=2)
    padding = computed.tokens / sum(len(t.input_ids) for t in trajectories)
    return PassPlan(planned, computed, excess=padding / padding_at_scale(size), notes={"padding": padding})


@lru_cache
def padding_at_scale(batch: int) -> float:
    """Computed over real tokens if batches of similar length are chosen among thousands, as its sampler does."""
    lengths = sorted(len(t.input_ids) for t in flat(make_workload(MANY_QUESTIONS, seed=0)))
    batches = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return sum(len(batch_lengths) * batch_lengths[-1] for batch_lengths in batches) / sum(lengths)


WAY = TrainingWay(
    title="TRL PRMTrainer",
    source="written afresh after TRL 1.13.0, with transformers' model and loss; trajectories grouped by length",
    precision="float32 weights and moments, bfloat16 autocast",
    families=(
        tuple({"batch": batch, "recompute": False} for batch in (64, 32, 16, 8, 4)),
        tuple({"batch": batch, "recompute": True} for batch in (64, 32, 16, 8)),
    ),
    plan=plan,
    build=build,
)
