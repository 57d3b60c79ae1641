"""Models of transformers with random weights, made on the device that they are for."""

from copy import deepcopy
from typing import Any
from zlib import crc32

import torch
from torch import nn

DEVIATION = 0.02


def random_model(
    kind: Any, config: Any, device: torch.device, dtype: torch.dtype, attention: str, **options: Any
) -> Any:
    """`kind` is an auto class of transformers; `options` are set in a copy of the config."""
    config = deepcopy(config)
    for name, value in (options | {"use_cache": False}).items():
        setattr(config, name, value)
    with torch.device(device):
        model = kind.from_config(config, dtype=dtype, attn_implementation=attention)
    randomise(model)
    return model.train()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights that depend on their name and size alone, up to rounding: the same in every way to train."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator(parameter.device).manual_seed(crc32(name.encode()))
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32)
            parameter.copy_(drawn.mul_(DEVIATION))
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def recompute_layers(model: Any) -> None:
    """Activations of every layer are computed again in the backward pass instead of being kept."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # the name in newer transformers
    # nothing random is drawn, so its state is not kept, for which the device would be waited for
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False, "preserve_rng_state": False})
