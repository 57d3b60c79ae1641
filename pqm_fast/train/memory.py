"""What a step will need of memory, estimated before the first one, and the sizes that fit."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from pqm_fast.data.pack import pack
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.host_memory import free_on_host
from pqm_fast.train.layers import decoder_layers

Auto = Literal["auto"]
MOST_TOKENS = 16384
# Below, a GPU computes layers again first: whole questions in trees would leave a fifth of 4,096 tokens empty.
FEWEST_TOKENS = 8192
# Measured on a CPU, which needs seconds for more: what a layer keeps grows with the tokens.
MEASURED_TOKENS = 1024
# Not yet held against a GPU: for the allocator's gaps, workspaces of matrix products, the head.
RESERVE = 0.08
# Measured on a CPU: glibc keeps what was freed between blocks that stay, up to a third of the estimate on top of it.
HOST_RESERVE = 0.3


@dataclass(frozen=True)
class LayerBytes:
    """Activations of one decoder layer that wait for the backward pass, in bytes a token."""

    kept: float
    """If they are kept."""
    recomputed: float
    """If they are computed again: the layer's input."""


@dataclass(frozen=True)
class Sizes:
    """How an optimizer step is cut up."""

    micro_batch_tokens: int
    accumulation: int
    recompute_layers: int


@dataclass(frozen=True)
class Needs:
    """Bytes of a training step, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def describe(self, available: int) -> str:
        """One line, in GB of 1e9 bytes."""
        parts = " + ".join(f"{name} {bytes / 1e9:.1f}" for name, bytes in vars(self).items())
        text = f"memory, estimated: {parts} = {self.total / 1e9:.1f} GB of {available / 1e9:.1f}"
        if self.total <= available:
            return text
        return (
            f"{text}: it may not fit. --optimizer adamw-8bit, --lora-rank, a lower --max-length and, if they were "
            "given, fewer --micro-batch-tokens or more --recompute-layers need less"
        )


def measure_layer(model: StepQModel, tokens: int, tree_ratio: float = 1.0, longest: int = 256) -> LayerBytes:
    """What the first decoder layer, as it is computed, keeps for its backward on a batch of so many tokens, in which
    trajectories of about `longest` tokens have `tree_ratio` times as many. (Where soft caps make SDPA keep the scores,
    the longer a trajectory is, the more a token of it takes.)

    Autograd is asked what it saves; weights and what the layers share (angles of rotary embeddings, the layout of the
    batch) are not counted.
    """
    layer = decoder_layers(model.train())[0]
    args, kwargs = _inputs(model, layer, tokens, tree_ratio, longest)
    hidden = args[0].detach().requires_grad_()
    with torch.enable_grad():  # as below, so that nothing is compiled twice
        layer(hidden, *args[1:], **kwargs)  # makes the masks that the layers share
    not_counted = {_storage(t) for t in (*model.parameters(), *_tensors([args[1:], kwargs]), hidden)}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in not_counted:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # itself, it would hold its graph, which holds it, and stay for good

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(hidden, *args[1:], **kwargs)
    del out  # what is noted must live until here: storages are told apart by their addresses
    own = hidden.untyped_storage().nbytes()
    return LayerBytes((sum(kept.values()) + own) / tokens, own / tokens)


def needs(model: StepQModel, layer: LayerBytes, sizes: Sizes, optimizer: str) -> Needs:
    """The bytes of a step, activations at their peak in the backward pass."""
    learned = [p for p in model.parameters() if p.requires_grad]
    half = sum(p.numel() for p in learned if p.dtype != torch.float32)
    single = sum(p.numel() for p in learned) - half
    # bfloat16 weights: the low half of the master weights, and two moments; float32 weights are their own masters
    states = 2 * (half + single) if optimizer == "adamw-8bit" else 10 * half + 8 * single
    again, depth = sizes.recompute_layers, len(decoder_layers(model))
    waiting = (depth - again) * layer.kept + again * layer.recomputed
    # In the backward of a layer the gradients of what it kept. The last layers come first; where they too are computed
    # again, what that gives is there besides.
    working = layer.kept * (2 if again == depth else 1)
    return Needs(
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        gradients=(4 if sizes.accumulation > 1 else 2) * half + 4 * single,
        optimizer=states,
        activations=int(sizes.micro_batch_tokens * (waiting + working)),
    )


def choose(
    tokens: int | Auto,
    accumulation: int,
    recompute_layers: int | Auto | Literal["all"],
    *,
    depth: int,
    longest: int,
    fits: Callable[[Sizes], bool],
    fewest: int = FEWEST_TOKENS,
) -> Sizes:
    """Sizes with nothing left on auto: the largest micro-batch first, then the fewest layers computed again.

    A micro-batch is made smaller, down to `fewest` tokens, with more of them in a step, before anything is computed
    again, for that costs up to a third more. It takes the `longest` trajectory whole. If nothing fits, the least that
    there is.
    """
    every = [(tokens, accumulation)] if tokens != "auto" else list(_halved(accumulation, longest))
    if recompute_layers != "auto":
        again = depth if recompute_layers == "all" else min(recompute_layers, depth)
        candidates = [Sizes(*one, again) for one in every]
    else:
        large = [one for one in every if one[0] >= fewest] or every[:1]
        candidates = [Sizes(*one, 0) for one in large]
        candidates += [Sizes(*large[-1], again) for again in range(1, depth + 1)]
        candidates += [Sizes(*one, depth) for one in every[len(large) :]]
    return next((sizes for sizes in candidates if fits(sizes)), candidates[-1])


def _halved(accumulation: int, longest: int) -> Iterable[tuple[int, int]]:
    """(tokens of a micro-batch, micro-batches of an optimizer step)."""
    tokens = max(MOST_TOKENS, longest)
    while True:
        yield tokens, accumulation
        if tokens // 2 < longest:
            return
        tokens, accumulation = tokens // 2, 2 * accumulation


def fit_memory(
    model: StepQModel,
    tokens: int | Auto,
    accumulation: int,
    recompute_layers: int | Auto | Literal["all"],
    *,
    longest: int,
    optimizer: str,
    tree_ratio: Callable[[], float] = lambda: 1.0,
) -> tuple[Sizes, str | None]:
    """`choose` for the memory of the model's device, and what to tell the user about it. `tree_ratio`, asked
    for only if something is measured: see `measure_layer`.

    Raises PQMError on a GPU, and for layers to be computed again, if the model's layers are not found.
    """
    if tokens != "auto" and recompute_layers == 0:
        return Sizes(tokens, accumulation, 0), None
    on_gpu = model.device.type == "cuda"
    try:
        depth = len(decoder_layers(model))
    except PQMError:
        if on_gpu or recompute_layers not in ("auto", 0):
            raise
        sizes = choose(tokens, accumulation, 0, depth=0, longest=longest, fits=lambda sizes: True)
        return sizes, f"memory: not estimated, the decoder layers of {model.config.model_type} were not found"
    most = max(MOST_TOKENS, longest) if tokens == "auto" else tokens
    layer = measure_layer(model, most if on_gpu else min(most, MEASURED_TOKENS), tree_ratio(), longest)
    free, reserve = (_free_on_gpu(model.device), RESERVE) if on_gpu else (free_on_host(), HOST_RESERVE)
    available = int(free * (1 - reserve))
    sizes = choose(
        tokens,
        accumulation,
        recompute_layers,
        depth=depth,
        longest=longest,
        fits=lambda sizes: needs(model, layer, sizes, optimizer).total <= available,
        fewest=FEWEST_TOKENS if on_gpu else 0,  # a CPU is as fast with small micro-batches
    )
    return sizes, needs(model, layer, sizes, optimizer).describe(available)


def _free_on_gpu(device: torch.device) -> int:
    """Bytes for the model, what it holds already among them."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)  # by this process: the weights, and what it can use again


def _tree(tokens: int, longest: int, ratio: float, vocabulary: int) -> list[tuple[int, Trajectory]]:
    """Trajectories of about `longest` tokens which share so many at the start that `tokens` are to compute, and all
    together have `ratio` times as many."""
    count = min(max(math.ceil(ratio * tokens / longest), 2 if ratio > 1 else 1), tokens)
    length = min(int(ratio * tokens / count), tokens - count + 1)  # one token of each at least is its own
    shared = min((count * length - tokens) // (count - 1) + 1, length - 1) if ratio > 1 and count > 1 else 0
    random = np.random.default_rng(0)
    beginning = random.integers(vocabulary, size=shared)
    made = [np.concatenate([beginning, random.integers(vocabulary, size=length - shared)]) for _ in range(count)]
    return [(i, Trajectory(ids, np.array([0]), np.zeros(1, np.float32))) for i, ids in enumerate(made)]


class _Captured(Exception):
    pass


def _inputs(
    model: StepQModel, layer: torch.nn.Module, tokens: int, tree_ratio: float, longest: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that `layer` is called with on a batch of trajectories of about `longest` tokens."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def capture(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _Captured

    made = _tree(tokens, min(longest, model.context), tree_ratio, model.config.get_text_config().vocab_size)
    together = np.zeros(len(made), np.int64) if tree_ratio > 1 else None
    batch = pack(made, question=together, pad_to=tokens)
    hook = layer.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        with torch.no_grad():
            model.scores(batch)
    except _Captured:
        pass
    finally:
        hook.remove()
    return found[0]


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
