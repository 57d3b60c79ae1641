"""AdamW for the ways that are not ours."""

from collections.abc import Iterable

import torch
from torch import nn

from pqm_benchmarks.train.ways.way import LEARNING_RATE

PART = 2**26  # weights whose gradients are float32 at the same time


def adamw(parameters: Iterable[nn.Parameter]) -> "torch.optim.AdamW | MasterAdamW":
    """PyTorch's fused AdamW, on float32 master weights if the weights are in half precision."""
    parameters = list(parameters)
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters)
    return MasterAdamW(parameters) if half else torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)


class MasterAdamW:
    """Float32 master weights, moments and update for weights in half precision, as in DeepSpeed: 12 bytes a weight in
    addition to weights and gradients. It updates part by part, so that not all gradients are float32 at once."""

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
