"""AdamW for the ways that are not ours."""

from collections.abc import Iterable

import torch
from torch import nn

from pqm_benchmarks.train.ways.way import LEARNING_RATE

PART = 2**26  # weights whose gradients are in float32 at a time


def adamw(parameters: Iterable[nn.Parameter]) -> "torch.optim.AdamW | MasterAdamW":
    """PyTorch's fused update, on master weights in float32 where the weights have less."""
    parameters = list(parameters)
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters)
    return MasterAdamW(parameters) if half else torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)


class MasterAdamW:
    """Master weights, moments and update in float32 for weights in half precision, as DeepSpeed does it: 12 bytes a
    weight besides weights and gradients. Part by part, so that not all gradients are in float32 at once."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        parts: list[list[nn.Parameter]] = [[]]
        for parameter in parameters:
            if sum(p.numel() for p in parts[-1]) >= PART:
                parts.append([])
            parts[-1].append(parameter)
        masters = [[p.detach().float().requires_grad_() for p in part] for part in parts]
        self.parts = [
            (p, m, torch.optim.AdamW(m, lr=LEARNING_RATE, fused=True)) for p, m in zip(parts, masters, strict=True)
        ]

    @torch.no_grad()
    def step(self) -> None:
        for parameters, masters, update in self.parts:
            for parameter, master in zip(parameters, masters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
            update.step()
            update.zero_grad(set_to_none=True)
            for parameter, master in zip(parameters, masters, strict=True):
                parameter.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameters, _, _ in self.parts:
            for parameter in parameters:
                parameter.grad = None
