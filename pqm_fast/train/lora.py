"""Low-rank adapters (peft) in the decoder layers, merged into plain weights when a checkpoint is saved."""

import torch
from torch import nn

from pqm_fast.common.lean_imports import without_torchao
from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.layers import decoder_layers


def add_adapters(model: StepQModel, rank: int, alpha: int) -> None:
    """Puts an adapter on every linear map of the decoder layers; only adapters and the Q-value head are trained.

    Raises PQMError if peft is not installed or the layers have no linear maps.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.import_utils import is_torchao_available
    except ImportError as error:
        raise PQMError("lora_rank: needs peft; install it with `pip install peft`") from error
    names = {
        name.rpartition(".")[2]
        for layer in decoder_layers(model)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not names:
        raise PQMError(f"lora_rank: {model.config.model_type} has no linear layers that adapters can be put on")
    model.requires_grad_(False)
    with without_torchao(is_torchao_available):  # not needed: the weights are plain tensors
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(names)), model.backbone)
    model.head.requires_grad_(True)


def adapted(module: nn.Module) -> bool:
    """Whether `module` has adapters."""
    return any(".lora_A." in name for name, _ in module.named_parameters())


@torch.no_grad()
def merged_state(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict `state` of `module` with every adapter added to the weight that it adapts, in float32, under the
    original names."""
    from peft.tuners.lora import Linear

    merged = dict(state)
    for name, part in module.named_modules():
        if not isinstance(part, Linear):
            continue
        for key in [key for key in merged if key.startswith(f"{name}.lora_")]:
            del merged[key]
        for key in [key for key in merged if key.startswith(f"{name}.base_layer.")]:
            merged[key.replace(".base_layer.", ".")] = merged.pop(key)
        weight = merged[f"{name}.weight"].float()
        for adapter in part.active_adapters:
            down, up = (state[f"{name}.lora_{side}.{adapter}.weight"].float() for side in "AB")
            weight = weight + part.scaling[adapter] * (up @ down)
        merged[f"{name}.weight"] = weight
    return merged
