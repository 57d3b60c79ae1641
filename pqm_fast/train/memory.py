"""Estimates the memory that a training step needs before the first one, and chooses the sizes that fit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.host_memory import free_on_host
from pqm_fast.train.layer_memory import LayerBytes, measure_layer
from pqm_fast.train.layers import decoder_layers

Auto = Literal["auto"]
MOST_TOKENS = 16384
# A GPU recomputes layers rather than use smaller batches than this: a fifth of a batch of 4,096 tokens would stay empty
# if prefix trees keep whole questions together.
FEWEST_TOKENS = 8192
# A CPU would take seconds to measure more. What a layer keeps grows with the number of tokens.
MEASURED_TOKENS = 1024
# For the allocator's gaps, workspaces of matrix products, and the head. It has not been compared with a GPU yet.
RESERVE = 0.08
# Measured on a CPU: glibc keeps freed memory that lies between blocks in use, up to a third of the estimate.
HOST_RESERVE = 0.3


@dataclass(frozen=True)
class Sizes:
    """How an optimizer step is divided."""

    micro_batch_tokens: int
    micro_batches: int
    """Micro-batches in an optimizer step, of all ranks together."""
    recompute_layers: int
    """Layers whose activations are computed again in the backward pass."""

    def rounds(self, ranks: int) -> int:
        """The micro-batches of each rank in an optimizer step."""
        return -(-self.micro_batches // ranks)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int = 0
    """Whole weights and gradients of the layers at work, if they are sharded."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.gathered

    def describe(self, available: int) -> str:
        """One line, in GB of 1e9 bytes."""
        parts = " + ".join(
            f"{name} {size / 1e9:.1f}" for name, size in vars(self).items() if size or name != "gathered"
        )
        text = f"memory, estimated: {parts} = {self.total / 1e9:.1f} GB of {available / 1e9:.1f}"
        if self.total <= available:
            return text
        return (
            f"{text}: it may not fit. --optimizer adamw-8bit, --lora-rank, a lower --max-length and, if they were "
            "given, fewer --micro-batch-tokens or more --recompute-layers need less"
        )


@dataclass(frozen=True)
class Sharing:
    """How many ranks compute an optimizer step, and among how many of them each parameter is divided."""

    ranks: int = 1
    shards: int = 1
    on_machine: int = 1
    """The ranks that share the memory of this machine."""


def estimate_memory(
    model: StepQModel, layer: LayerBytes, sizes: Sizes, optimizer: str, sharing: Sharing | None = None
) -> MemoryEstimate:
    """The bytes of a training step on one rank, with activations at their peak in the backward pass. The model is
    whole, not yet sharded."""
    sharing = sharing or Sharing()
    trained = [p for p in model.parameters() if p.requires_grad]
    in_float32 = sum(p.numel() for p in trained if p.dtype == torch.float32)
    in_bfloat16 = sum(p.numel() for p in trained) - in_float32
    # two moments; with adamw, bfloat16 weights also have the low halves of their float32 master weights
    moments, low_half = (2, 0) if optimizer == "adamw-8bit" else (8, 2)
    depth, recomputed = len(decoder_layers(model)), sizes.recompute_layers
    waiting = (depth - recomputed) * layer.kept + recomputed * layer.recomputed
    # The backward pass of a layer needs the gradients of what the layer kept. It begins with the last layers; if these
    # are recomputed too, it also needs what recomputing them yields.
    working = layer.kept * (2 if recomputed == depth else 1)
    # bytes of the gradient of a bfloat16 weight: several micro-batches add up in float32, and so do several ranks
    in_full = 4 if sizes.rounds(sharing.ranks) > 1 or sharing.ranks > 1 else 2
    return MemoryEstimate(
        weights=sum(p.numel() * p.element_size() for p in model.parameters()) // sharing.shards,
        gradients=(in_full * in_bfloat16 + 4 * in_float32) // sharing.shards,
        optimizer=(moments * (in_bfloat16 + in_float32) + low_half * in_bfloat16) // sharing.shards,
        activations=int(sizes.micro_batch_tokens * (waiting + working)),
        gathered=_gathered(model) if sharing.shards > 1 else 0,
    )


def _gathered(model: StepQModel) -> int:
    """Bytes of the layer at work and the one that is gathered ahead of it, with the gradients of one layer, also in
    float32 for their sum over the ranks; and the same of what belongs to no layer (the embedding), which stays
    gathered for the whole step."""
    layers = decoder_layers(model)
    weights, trained = [0, 0], [0, 0]
    in_layers = {id(p) for layer in layers for p in layer.parameters()}
    rest = [p for p in model.parameters() if id(p) not in in_layers]
    for i, parameters in enumerate((list(layers[0].parameters()), rest)):
        weights[i] = sum(p.numel() * p.element_size() for p in parameters)
        trained[i] = sum(p.numel() * (p.element_size() + 4) for p in parameters if p.requires_grad)
    return 2 * weights[0] + trained[0] + weights[1] + trained[1]


def choose_sizes(
    tokens: int | Auto,
    micro_batches: int,
    recompute_layers: int | Auto | Literal["all"],
    *,
    depth: int,
    longest: int,
    fits: Callable[[Sizes], bool],
    fewest: int = FEWEST_TOKENS,
) -> Sizes:
    """Sizes without any `auto`: the largest micro-batch that fits, then the fewest recomputed layers.

    A micro-batch is made smaller, down to `fewest` tokens, with more of them in an optimizer step, before any layer is
    recomputed, because recomputing costs up to a third more time. A micro-batch always holds the `longest` trajectory.
    If nothing fits, the smallest sizes are chosen.
    """
    cuts = [(tokens, micro_batches)] if tokens != "auto" else list(_halved(micro_batches, longest))
    if recompute_layers != "auto":
        recomputed = depth if recompute_layers == "all" else min(recompute_layers, depth)
        candidates = [Sizes(*cut, recomputed) for cut in cuts]
    else:
        large = [cut for cut in cuts if cut[0] >= fewest] or cuts[:1]
        candidates = [Sizes(*cut, 0) for cut in large]
        candidates += [Sizes(*large[-1], recomputed) for recomputed in range(1, depth + 1)]
        candidates += [Sizes(*cut, depth) for cut in cuts[len(large) :]]
    return next((sizes for sizes in candidates if fits(sizes)), candidates[-1])


def _halved(micro_batches: int, longest: int) -> Iterable[tuple[int, int]]:
    """(tokens of a micro-batch, micro-batches of an optimizer step), from the largest micro-batch down."""
    tokens = max(MOST_TOKENS, longest)
    while True:
        yield tokens, micro_batches
        if tokens // 2 < longest:
            return
        tokens, micro_batches = tokens // 2, 2 * micro_batches


def fit_memory(
    model: StepQModel,
    tokens: int | Auto,
    micro_batches: int,
    recompute_layers: int | Auto | Literal["all"],
    *,
    longest: int,
    optimizer: str,
    tree_ratio: Callable[[], float] = lambda: 1.0,
    sharing: Sharing | None = None,
) -> tuple[Sizes, str | None]:
    """`choose_sizes` for the memory of the model's device, and what to tell the user about it.

    `tree_ratio` (see `measure_layer`) is called only if something is measured. If the decoder layers of a model
    are not found, raises PQMError on a GPU, or if layers are to be recomputed.
    """
    if tokens != "auto" and recompute_layers == 0:
        return Sizes(tokens, micro_batches, 0), None
    sharing = sharing or Sharing()
    on_gpu = model.device.type == "cuda"
    try:
        depth = len(decoder_layers(model))
    except PQMError:
        if on_gpu or recompute_layers not in ("auto", 0):
            raise
        sizes = choose_sizes(tokens, micro_batches, 0, depth=0, longest=longest, fits=lambda sizes: True)
        return sizes, f"memory: not estimated, the decoder layers of {model.config.model_type} were not found"
    most_tokens = max(MOST_TOKENS, longest) if tokens == "auto" else tokens
    layer = measure_layer(model, most_tokens if on_gpu else min(most_tokens, MEASURED_TOKENS), tree_ratio(), longest)
    free, reserve = (
        (_free_on_gpu(model.device), RESERVE) if on_gpu else (free_on_host() // sharing.on_machine, HOST_RESERVE)
    )
    available = int(free * (1 - reserve))
    sizes = choose_sizes(
        tokens,
        micro_batches,
        recompute_layers,
        depth=depth,
        longest=longest,
        fits=lambda sizes: estimate_memory(model, layer, sizes, optimizer, sharing).total <= available,
        fewest=FEWEST_TOKENS if on_gpu else 0,  # a CPU is as fast with small micro-batches
    )
    return sizes, estimate_memory(model, layer, sizes, optimizer, sharing).describe(available)


def _free_on_gpu(device: torch.device) -> int:
    """Bytes that this process can use for the model, including what it holds already."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)  # the weights, and memory that the allocator can use again
