"""The optimizer, and the dtype of the gradients that it gets."""

from collections.abc import Sequence

import torch
from pqm_kernels import AdamW
from torch import nn

from pqm_fast.errors import PQMError
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.sharding import Part


def make_optimizer(own: Sequence[Part], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW on the parts `own` of this rank. Weight decay applies to matrices, not to norms, biases and other vectors.

    For bfloat16 weights, `adamw` keeps the missing bits of float32 master weights. Raises PQMError if torchao, which
    `adamw-8bit` needs, is not installed.
    """
    parameters = [part.local for part in own]
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
    """Makes the gradients of several micro-batches add up in float32, whatever the dtype of the weights."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad_dtype = torch.float32


def update(optimizer: torch.optim.Optimizer, left_out: torch.Tensor | None) -> None:
    """Takes the optimizer's step, unless the scalar `left_out` on the device is not 0.

    The device decides. Only optimizers that cannot be told by the device, such as torchao's, make the host wait.
    """
    if isinstance(optimizer, AdamW) or (
        isinstance(optimizer, torch.optim.AdamW) and all(group["fused"] for group in optimizer.param_groups)
    ):
        optimizer.found_inf = left_out  # type: ignore[union-attr]  # as GradScaler does for fused optimizers
    elif left_out is not None and left_out.item():
        return
    optimizer.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):  # torchao's compiled optimizers keep it in a tensor
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
