"""AdamW on float32 master weights and the learning-rate schedule."""

import math

import torch
from torch import nn

from pqm_fast.train.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Matrices are decayed; norms, biases and the like are not. One fused update."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Of optimizer step `step` (from 0) out of `total`: linear warm-up, then a cosine down to final_lr."""
    warmup = config.warmup_steps if config.warmup_steps is not None else round(0.03 * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_lr + (1 - config.final_lr) * cosine)
