"""The published trainer of PQM, reimplemented after its train_main.py and value_model.py.

A causal language model computes the vocabulary logits of all tokens and casts them to float32, although nothing reads
them, and returns the hidden states of all layers. A linear value head is applied to every token, and every layer is
computed twice. Batches are 64, 24 and 8 trajectories of similar length, padded. Two things are left out in its favour:
dropout of the head's input, and DeepSpeed's offloading of weights and optimizer to the CPU. One thing counts against
it: attention is causal over the padded rectangle, while flash-attn in the original removes the padding and puts it
back. This is 2% of its operations at 0.5B and 0.5% at 7B. A batch that does not fit is cut into parts with the same
total loss. The original computes the loss in bfloat16 too; here it is float32, which costs nothing.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pqm_benchmarks.comparison.rounds import Setting
from pqm_benchmarks.shared.published import published_rank
from pqm_benchmarks.shared.workload import Questions, flat, published_batches
from pqm_benchmarks.train.ways.models import random_model, randomise, recompute_layers
from pqm_benchmarks.train.ways.optimizers import adamw
from pqm_benchmarks.train.ways.padded import IGNORED, padded_rows, stack, token_ids
from pqm_benchmarks.train.ways.plain_step import MicroBatch, PlainStep, spread
from pqm_benchmarks.train.ways.way import ZETA, PassPlan, TrainingWay, host
from pqm_fast.data.trajectory import Trajectory


class ValueModel(nn.Module):
    """A causal language model with a value head on each token."""

    def __init__(self, config: Any, device: torch.device, dtype: torch.dtype):
        from transformers import AutoModelForCausalLM

        super().__init__()
        self.language_model = random_model(AutoModelForCausalLM, config, device, dtype, "sdpa")
        self.value = nn.Linear(config.hidden_size, 1, device=device, dtype=dtype)
        randomise(self.value)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, L, V] float32 and values [B, L]."""
        out = self.language_model(input_ids=input_ids, output_hidden_states=True)
        return out.logits.float(), self.value(out.hidden_states[-1]).squeeze(-1)


def build(config: Any, device: torch.device, dtype: torch.dtype, setting: Setting) -> PlainStep:
    model = ValueModel(config, device, dtype)
    recompute_layers(model.language_model)

    def loss(input_ids: Tensor, step_index: Tensor, labels: Tensor) -> Tensor:
        _, values = model(input_ids)
        values = values.float() if values.dtype != torch.float64 else values
        return published_rank(values.gather(1, step_index), labels, ZETA)

    # an untied vocabulary head gets no gradient, so that no time is spent on its update
    learned = [*model.language_model.model.parameters(), *model.value.parameters()]
    return PlainStep(loss, learned, adamw(learned), device)


def plan(questions: Questions, steps: int, setting: Setting, device: torch.device) -> PassPlan:
    """The published batches in random order, each cut into `parts` that add up to the loss of the whole."""
    trajectories = flat(questions)
    batches = published_batches(np.array([len(t.input_ids) for t in trajectories]), seed=0)
    batches = [batches[i] for i in np.random.default_rng(0).permutation(len(batches))]
    planned: list[list[MicroBatch]] = []
    computed: list[list[Trajectory]] = []
    for step in spread(batches, steps):
        planned.append([])
        for batch in step:
            for part in np.array_split(batch, min(setting["parts"], len(batch))):
                members = [trajectories[i] for i in part]
                computed.append(members)
                planned[-1].append(_micro_batch(members, len(part) / len(batch) / len(step), device))
    return PassPlan(planned, padded_rows(computed, values=1), logit_passes=1)


def _micro_batch(trajectories: list[Trajectory], weight: float, device: torch.device) -> MicroBatch:
    arrays = {
        "input_ids": token_ids(trajectories),
        "step_index": stack([t.step_tokens for t in trajectories], 0),
        "labels": stack([t.labels.astype(np.int64) for t in trajectories], IGNORED),
    }
    return MicroBatch({name: host(array, device) for name, array in arrays.items()}, weight)


WAY = TrainingWay(
    title="published",
    source="written afresh after WindyLee0822/Process_Q_Model (train_main.py, value_model.py), without dropout and "
    "offloading",
    precision="bfloat16 weights, float32 master weights and moments",
    families=(tuple({"parts": parts} for parts in (1, 2, 4, 8)),),
    plan=plan,
    build=build,
)
