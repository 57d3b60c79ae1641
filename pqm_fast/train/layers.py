"""Ways to compute the decoder layers: compiled, with liger-kernel, in 8-bit floats, with activations recomputed."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pqm_fast.errors import PQMError
from pqm_fast.model import cut
from pqm_fast.model.step_q_model import StepQModel


def decoder_layers(model: StepQModel) -> nn.ModuleList:
    """The decoder layers in order. Raises PQMError if they are not found; the model can be trained only with eager
    layers and without recomputing any."""
    try:
        return cut.decoder_layers(model.backbone, model.config)
    except PQMError as error:
        raise PQMError(f"{error}; pass --layers eager and --recompute-layers 0, no adapters and no --float8") from error


def compile_layers(model: StepQModel, **options: Any) -> None:
    """Compiles each layer by itself, for one shape: another number of tokens in a batch compiles it again.

    A last layer that computes only the rows that steps read is not compiled, because their number differs from batch to
    batch. Attention breaks a layer's graph in two. `options` go to torch.compile.
    """
    layers = decoder_layers(model)
    for layer in layers[:-1] if model.step_rows_only else layers:
        layer.__class__ = _compiled(type(layer), **options)  # type: ignore[arg-type]


def recompute(model: StepQModel, count: int) -> None:
    """Makes the first `count` layers keep only their input, and compute again what their backward pass needs."""
    # This wraps the compiled layer: transformers' checkpointing, inside the layer, would keep it from being compiled.
    for layer in decoder_layers(model)[:count] if count else ():
        layer.__class__ = _checkpointed(type(layer))  # type: ignore[arg-type]


# All layers of a class share a compiled class, so that what is compiled for one serves the others, and later models.
@cache
def _compiled(layer_class: type[nn.Module], **options: Any) -> type[nn.Module]:
    return _subclass(layer_class, torch.compile(layer_class.forward, dynamic=False, **options))


@cache
def _checkpointed(layer_class: type[nn.Module]) -> type[nn.Module]:
    def forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return layer_class.forward(layer, *args, **kwargs)
        return checkpoint(layer_class.forward, layer, *args, use_reentrant=False, **kwargs)

    return _subclass(layer_class, forward)


def _subclass(layer_class: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    """A subclass with another `forward`, and the same name because transformers looks at it.

    Setting `forward` on the layer itself would make a reference cycle, and the model would stay in memory until the
    garbage collector runs.
    """
    names = {"__module__": layer_class.__module__, "__qualname__": layer_class.__qualname__}
    subclass: Any = type(layer_class.__name__, (layer_class,), names)
    subclass.forward = forward  # set only now, because transformers wraps the `forward` that a class is created with
    return subclass


def use_liger(model: StepQModel) -> None:
    """Uses liger-kernel's RMSNorm, rotary embedding and SwiGLU.

    It replaces parts of transformers' module, so later models of the architecture in this process use them too. Raises
    PQMError if liger-kernel is not installed or does not have the architecture.
    """
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise PQMError("layers: liger needs liger-kernel; install it with `pip install liger-kernel`") from error
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model.config.model_type)
    if apply is None:
        raise PQMError(f"layers: liger-kernel has no layers for {model.config.model_type}; pass --layers compile")
    apply(model=model.classifier, cross_entropy=False, fused_linear_cross_entropy=False)


def use_float8(model: StepQModel, **options: Any) -> int:
    """Computes the matrix products of the decoder layers in 8-bit floats, forward and backward. Returns how many.

    Matrices with a side that is not a multiple of 16 are left out, because the hardware cannot multiply them. Raises
    PQMError if torchao is not installed, or no matrix is left. `options` go to Float8LinearConfig.
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
        model.backbone, config=Float8LinearConfig(**options), module_filter_fn=lambda module, name: id(module) in chosen
    )
    return len(chosen)
