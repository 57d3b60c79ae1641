"""The optimizer and the learning-rate schedule."""

import math

import torch
from pqm_kernels import AdamW
from torch import nn

from pqm_fast.errors import PQMError
from pqm_fast.train.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW. Matrices are decayed; norms, biases and the like are not.

    Where weights are bfloat16, `adamw` keeps the bits that these lack to float32 master weights. Raises PQMError if
    torchao is missing for `adamw-8bit`.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = config.beta1, config.beta2
    if config.optimizer == "adamw-8bit":
        try:
            from torchao.optim import AdamW8bit
        except ImportError as error:
            raise PQMError("optimizer: adamw-8bit needs torchao; install it with `pip install torchao`") from error
        return AdamW8bit(groups, lr=config.learning_rate, betas=betas, bf16_stochastic_round=True)
    if all(p.dtype == torch.float32 for p in parameters):
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    return AdamW(groups, lr=config.learning_rate, betas=betas)


def sum_gradients_in_float32(model: nn.Module) -> None:
    """Gradients of several micro-batches add up in float32, also of weights that are not."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad_dtype = torch.float32


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of every group."""
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):  # torchao's, which are compiled, keep it in one
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Of optimizer step `step` (from 0) out of `total`: linear warm-up, then a cosine down to final_lr."""
    warmup = config.warmup_steps if config.warmup_steps is not None else round(0.03 * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_lr + (1 - config.final_lr) * cosine)
