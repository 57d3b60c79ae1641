"""Models of transformers with random weights, created on the device that they run on."""

from copy import deepcopy
from typing import Any
from zlib import crc32

import torch
from torch import nn

DEVIATION = 0.02


def random_model(
    kind: Any, config: Any, device: torch.device, dtype: torch.dtype, attention: str, **options: Any
) -> Any:
    """A model of `kind`, which is an auto class of transformers; `options` are set in a copy of the config."""
    config = deepcopy(config)
    for name, value in (options | {"use_cache": False}).items():
        setattr(config, name, value)
    with torch.device(device):
        model = kind.from_config(config, dtype=dtype, attn_implementation=attention)
    randomise(model)
    return model.train()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights that depend only on their name and size, up to rounding, and are therefore the same in every way."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator(parameter.device).manual_seed(crc32(name.encode()))
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32)
            parameter.copy_(drawn.mul_(DEVIATION))
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def recompute_layers(model: Any) -> None:
    """Makes the backward pass compute the activations of every layer again, instead of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # the name in newer transformers
    # nothing random is drawn, so the random state is not saved, for which the host would have to wait for the device
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False, "preserve_rng_state": False})
