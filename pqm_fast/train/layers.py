"""How the decoder layers are computed: compiled, with other kernels, in 8-bit floats, kept or computed again."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel


def decoder_layers(model: StepQModel) -> list[nn.Module]:
    """The decoder layers in order. Raises PQMError for a model that does not have them in `layers` or `h`: it can be
    trained with layers as they are, nothing computed again."""
    for name in ("layers", "h"):
        found = getattr(model.backbone, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return list(found)
    raise PQMError(
        f"{model.config.model_type}: its decoder layers were not found; give --layers eager and --recompute-layers 0, "
        "no adapters and no --float8"
    )


def compile_layers(model: StepQModel, **how: Any) -> None:
    """Each layer by itself, for one shape: a batch of another number of tokens is compiled for anew.

    A last layer that computes step rows only stays as it is: their number is another in every batch. Attention breaks
    a layer's graph in two. `how` goes to torch.compile.
    """
    layers = decoder_layers(model)
    for layer in layers[:-1] if model.step_rows_only else layers:
        layer.__class__ = _compiled(type(layer), **how)  # type: ignore[arg-type]


def recompute(model: StepQModel, count: int) -> None:
    """The first `count` layers keep their input alone, and compute what their backward needs once more."""
    # Around the compiled layer: inside it, transformers' own checkpointing would keep the layer from being compiled.
    for layer in decoder_layers(model)[:count] if count else ():
        layer.__class__ = _checkpointed(type(layer))  # type: ignore[arg-type]


# One class for all layers of a class: what is compiled for one of them serves the others, in later models too.
@cache
def _compiled(layer_class: type[nn.Module], **how: Any) -> type[nn.Module]:
    return _subclass(layer_class, torch.compile(layer_class.forward, dynamic=False, **how))


@cache
def _checkpointed(layer_class: type[nn.Module]) -> type[nn.Module]:
    def forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return layer_class.forward(layer, *args, **kwargs)
        return checkpoint(layer_class.forward, layer, *args, use_reentrant=False, **kwargs)

    return _subclass(layer_class, forward)


def _subclass(layer_class: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    """One with another `forward` and the same name, which transformers looks at.

    A `forward` of the layer's own would hold the layer that holds it: a model would stay in memory until the garbage
    collector comes by.
    """
    names = {"__module__": layer_class.__module__, "__qualname__": layer_class.__qualname__}
    made: Any = type(layer_class.__name__, (layer_class,), names)
    made.forward = forward  # not before: transformers wraps the `forward` that a class is made with
    return made


def use_liger(model: StepQModel) -> None:
    """liger-kernel's RMSNorm, rotary embedding and SwiGLU, where it has them for the architecture. Raises PQMError.

    It replaces parts of transformers' module, so later models of the architecture in this process have them too.
    """
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise PQMError("layers: liger needs liger-kernel; install it with `pip install liger-kernel`") from error
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model.config.model_type)
    if apply is None:
        raise PQMError(f"layers: liger-kernel has no layers for {model.config.model_type}; give --layers compile")
    apply(model=model.classifier, cross_entropy=False, fused_linear_cross_entropy=False)


def use_float8(model: StepQModel, **how: Any) -> int:
    """The products of the decoder layers in 8-bit floats, forward and backward. Returns how many.

    Sides that are no multiple of 16 stay as they are, as the hardware has no such products. Raises PQMError if there
    is none to be had.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise PQMError("float8: needs torchao; install it with `pip install torchao`") from error

    chosen = {
        id(linear)
        for layer in decoder_layers(model)
        for linear in layer.modules()
        if isinstance(linear, nn.Linear) and linear.in_features % 16 == linear.out_features % 16 == 0
    }
    if not chosen:
        raise PQMError(f"float8: {model.config.model_type} has no linear layers with sides that are multiples of 16")
    convert_to_float8_training(
        model.backbone, config=Float8LinearConfig(**how), module_filter_fn=lambda module, name: id(module) in chosen
    )
    return len(chosen)
