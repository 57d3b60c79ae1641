"""The training step of OpenRLHF 0.9.5's process reward trainer, reimplemented, with packed samples.

Micro-batches are trajectories laid end to end. A causal language model computes the logits of all tokens, which are
cast to float32; the loss is the cross entropy over the vocabulary at the placeholder tokens, against the token that
represents the label. Weights are bfloat16 with DeepSpeed's float32 master weights. Two things are left out in its
favour: padding the logits back to a rectangle, and waiting for the loss.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pqm_benchmarks.comparison.rounds import Setting
from pqm_benchmarks.shared.workload import FIRST_ID, Questions, flat
from pqm_benchmarks.train.ways.models import random_model, recompute_layers
from pqm_benchmarks.train.ways.optimizers import adamw
from pqm_benchmarks.train.ways.plain_step import MicroBatch, PlainStep, spread
from pqm_benchmarks.train.ways.way import PassPlan, TrainingWay, host
from pqm_benchmarks.work.flops import RowCounts
from pqm_fast.model.attention import kernels

WRONG, CORRECT = FIRST_ID, FIRST_ID + 1  # token ids that represent the labels; any two would do


def build(config: Any, device: torch.device, dtype: torch.dtype, setting: Setting) -> PlainStep:
    from transformers import AutoModelForCausalLM

    model = random_model(AutoModelForCausalLM, config, device, dtype, packed_attention())
    if setting["recompute"]:
        recompute_layers(model)

    def loss(input_ids: Tensor, position_ids: Tensor, step_index: Tensor, labels: Tensor, **sequences: Any) -> Tensor:
        logits = model(input_ids=input_ids, position_ids=position_ids, **sequences).logits[0]
        logits = logits.float() if logits.dtype != torch.float64 else logits
        return F.cross_entropy(logits[step_index], labels)

    learned = list(model.parameters())
    return PlainStep(loss, learned, adamw(learned), device)


def plan(questions: Questions, steps: int, setting: Setting, device: torch.device) -> PassPlan:
    """Batches of random trajectories."""
    trajectories = flat(questions)
    order = np.random.default_rng(0).permutation(len(trajectories))
    chosen = [order[i : i + setting["batch"]] for i in range(0, len(order), setting["batch"])]

    def micro_batch(members: np.ndarray, weight: float) -> MicroBatch:
        batch = [trajectories[i] for i in members]
        lengths = np.array([len(t.input_ids) for t in batch])
        start = np.cumsum(lengths) - lengths
        arrays = {
            "input_ids": np.concatenate([t.input_ids for t in batch]).astype(np.int64)[None],
            "position_ids": np.concatenate([np.arange(n) for n in lengths])[None],
            "step_index": np.concatenate([t.step_tokens + s for t, s in zip(batch, start, strict=True)]),
            "labels": np.where(np.concatenate([t.labels for t in batch]) == 1, CORRECT, WRONG),
            "cu_seqlens": np.append(0, np.cumsum(lengths)).astype(np.int32),
        }
        tensors = {name: host(array, device) for name, array in arrays.items()}
        return MicroBatch(tensors | {"lengths": lengths.tolist()}, weight)

    planned = [[micro_batch(members, 1 / len(step)) for members in step] for step in spread(chosen, steps)]
    all_lengths = np.array([len(t.input_ids) for t in trajectories])
    tokens, pairs = int(all_lengths.sum()), int((all_lengths * (all_lengths + 1) // 2).sum())
    return PassPlan(planned, RowCounts(tokens, pairs, tokens, 0), logit_passes=3)


def packed_attention() -> str:
    """Registers causal attention within packed sequences, and returns its name. On a GPU it uses flash-attention's
    varlen kernels, which PyTorch has too; on a CPU it computes one sequence after the other."""
    from transformers import AttentionInterface

    name = "pqm_bench_packed"
    AttentionInterface.register(name, _attend)  # as no mask function has this name, transformers builds no mask
    return name


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *,
    cu_seqlens: Tensor, lengths: list[int], scaling: float | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [1, H, T, d], key and value [1, H_kv, T, d] -> [1, T, H, d]."""
    if query.is_cuda:
        kernel = kernels.find("varlen", query.device.index, query.shape[-1], softcap=False, dropout=False)
        packed = (x[0].transpose(0, 1) for x in (query, key, value))
        longest = max(lengths)
        out = kernel(
            *packed,
            cu_queries=cu_seqlens,
            cu_keys=cu_seqlens,
            longest_query=longest,
            longest_key=longest,
            scale=scaling,
            window=None,
            softcap=None,
            dropout=0.0,
        )
        return out[None], None
    parts = [x.split(lengths, dim=2) for x in (query, key, value)]
    outputs = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


WAY = TrainingWay(
    title="OpenRLHF PRM",
    source="written afresh after OpenRLHF 0.9.5, packed samples, PyTorch's varlen attention; without padding of logits "
    "and without waiting for the loss",
    precision="bfloat16 weights, float32 master weights and moments",
    families=(
        tuple({"batch": batch, "recompute": False} for batch in (32, 16, 8, 4)),
        tuple({"batch": batch, "recompute": True} for batch in (32, 16, 8, 4)),
    ),
    plan=plan,
    build=build,
)
