"""Measures, before the first step, how much memory one decoder layer keeps for its backward pass."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pqm_fast.data.pack import pack
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.layers import decoder_layers


@dataclass(frozen=True)
class LayerBytes:
    """Activations of one decoder layer that wait for the backward pass, in bytes per token."""

    kept: float
    """The bytes if the activations are kept."""
    recomputed: float
    """The bytes if they are computed again: only the layer's input is kept."""


def measure_layer(model: StepQModel, tokens: int, tree_ratio: float = 1.0, longest: int = 256) -> LayerBytes:
    """Measures what the first decoder layer keeps for its backward pass, in the way that it will be computed.

    The batch has `tokens` tokens to compute, and trajectories of about `longest` tokens that have `tree_ratio` times as
    many together. (Where soft caps make SDPA keep the scores, a token of a longer trajectory takes more.)

    Autograd tells which tensors it saves. Weights are not counted, and neither is what all layers share (angles of
    rotary embeddings, the layout of the batch).
    """
    layer = decoder_layers(model.train())[0]
    args, kwargs = _layer_inputs(model, layer, tokens, tree_ratio, longest)
    hidden = args[0].detach().requires_grad_()
    with torch.enable_grad():  # as in the measurement below, so that nothing is compiled twice
        layer(hidden, *args[1:], **kwargs)  # makes the masks that the layers share
    shared = {_storage(t) for t in (*model.parameters(), *_tensors([args[1:], kwargs]), hidden)}
    kept_bytes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in shared:
            kept_bytes[_storage(tensor)] = tensor.untyped_storage().nbytes()
        # the tensor itself would hold its graph, which holds the tensor: neither would ever be freed
        return tensor.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(hidden, *args[1:], **kwargs)
    del out  # not earlier: storages are told apart by their addresses, so all of them must be alive until here
    input_bytes = hidden.untyped_storage().nbytes()
    return LayerBytes(kept=(sum(kept_bytes.values()) + input_bytes) / tokens, recomputed=input_bytes / tokens)


class _Captured(Exception):
    """Ends a forward pass once the inputs of a layer are known."""


def _layer_inputs(
    model: StepQModel, layer: torch.nn.Module, tokens: int, tree_ratio: float, longest: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that `layer` is called with on a batch of trajectories of about `longest` tokens."""
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def capture(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append((args, kwargs))
        raise _Captured

    trajectories = _tree(tokens, min(longest, model.context), tree_ratio, model.config.get_text_config().vocab_size)
    question = np.zeros(len(trajectories), np.int64) if tree_ratio > 1 else None  # the same question for all
    batch = pack(trajectories, question=question, pad_to=tokens)
    hook = layer.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        with torch.no_grad():
            model.scores(batch)
    except _Captured:
        pass
    finally:
        hook.remove()
    return inputs[0]


def _tree(tokens: int, longest: int, ratio: float, vocabulary: int) -> list[tuple[int, Trajectory]]:
    """Random trajectories of about `longest` tokens. They share so many tokens at the start that only `tokens` are
    computed, although all of them together have `ratio` times as many."""
    count = min(max(math.ceil(ratio * tokens / longest), 2 if ratio > 1 else 1), tokens)
    length = min(int(ratio * tokens / count), tokens - count + 1)  # at least one token of each is not shared
    shared = min((count * length - tokens) // (count - 1) + 1, length - 1) if ratio > 1 and count > 1 else 0
    random = np.random.default_rng(0)
    beginning = random.integers(vocabulary, size=shared)
    sequences = [np.concatenate([beginning, random.integers(vocabulary, size=length - shared)]) for _ in range(count)]
    return [(i, Trajectory(ids, np.array([0]), np.zeros(1, np.float32))) for i, ids in enumerate(sequences)]


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    """All tensors in nested containers and objects."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
