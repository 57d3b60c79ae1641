"""Training a head on stored hidden states: states, batches, and an epoch, launch by launch, as a CUDA graph, or by the
step of `pqm-fast probe`.

A step of the first two launches six kernels: the fused op one forward and two backward, PyTorch one that fills the
gradient of the loss, and AdamW two, of which one counts its steps. The states of a small batch take less time than
these launches take on the host, unless a CUDA graph holds them. The step of `pqm-fast probe` has more: its head learns
at the scale of the states.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pqm_kernels import StepsByRow, step_loss, steps_by_row
from torch import Tensor

from pqm_benchmarks.kernels.implementations import NORM_EPS, ZETA, relative_error
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    from pqm_fast.probe.train_head import ScaledHead

LENGTHS = (4, 12, 7, 9)  # steps of the trajectories, in turn
CYCLE = sum(LENGTHS)
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2


@dataclass(frozen=True)
class Batch:
    """A slice of the states, each of which one step reads.

    Attributes:
        hidden: [N, D], without a gradient.
        labels: [N] float32, 0 or 1.
        step_index: [N] int64, 0..N - 1. Batches of one size share this and the next two.
        cu_steps: [B + 1] int32, where the steps of each trajectory start.
        by_row: the index that the backward needs.
    """

    hidden: Tensor
    labels: Tensor
    step_index: Tensor
    cu_steps: Tensor
    by_row: StepsByRow


def make_states(size: int, width: int, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """(states [S, D], standard normal; labels [S] float32, of which three out of four are 1), of at most `size` bytes.

    S is a multiple of CYCLE. Raises PQMError if not even CYCLE states fit.
    """
    count = size // (width * dtype.itemsize) // CYCLE * CYCLE
    if not count:
        raise PQMError(f"{size:,} bytes hold fewer than {CYCLE} states of {width} columns; give more gigabytes")
    generator = torch.Generator(device).manual_seed(seed)
    states = torch.randn(count, width, generator=generator, dtype=dtype, device=device)
    return states, (torch.rand(count, generator=generator, device=device) < 0.75).float()


def make_batches(states: Tensor, labels: Tensor, steps: int) -> list[Batch]:
    """Consecutive slices of `steps` states, a multiple of CYCLE; the last one has what is left."""
    index: dict[int, tuple[Tensor, Tensor, StepsByRow]] = {}
    batches = []
    for hidden, of_batch in zip(states.split(steps), labels.split(steps), strict=True):
        size = len(hidden)
        if size not in index:
            every = torch.arange(size, device=states.device)
            ends = torch.tensor(LENGTHS, device=states.device).repeat(size // CYCLE).cumsum(0)
            index[size] = every, torch.cat([ends.new_zeros(1), ends]).int(), steps_by_row(every, size)
        batches.append(Batch(hidden, of_batch, *index[size]))
    return batches


def norm_weight(width: int, device: torch.device) -> Tensor:
    """[D] float32, the weight of the final norm."""
    return torch.linspace(0.5, 1.5, width, device=device)


class Head:
    """A head with its optimizer, beginning at zeros; the final norm is part of the op and does not learn."""

    def __init__(self, width: int, device: torch.device, backend: str):
        self.backend = backend
        self.weight = torch.zeros(width, device=device, requires_grad=True)
        self.bias = torch.zeros(1, device=device, requires_grad=True)
        self.norm_weight = norm_weight(width, device)
        self.optimizer = torch.optim.AdamW(
            (self.weight, self.bias), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True,
            capturable=device.type == "cuda",
        )  # fmt: skip

    def step(self, batch: Batch) -> None:
        self.gradient(batch)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradient(self, batch: Batch) -> None:
        step_loss(
            batch.hidden, batch.step_index, batch.labels, batch.cu_steps, self.weight, self.bias, loss="rank",
            zeta=ZETA, norm_weight=self.norm_weight, norm_eps=NORM_EPS, steps_by_row=batch.by_row,
            backend=self.backend,
        ).loss.backward()  # fmt: skip


def epoch_of(head: Head, batches: list[Batch]) -> Callable[[], None]:
    """Takes a step on each batch, launch by launch."""

    def epoch() -> None:
        for batch in batches:
            head.step(batch)

    return epoch


def probe_epoch(batches: list[Batch]) -> tuple["ScaledHead", Callable[[], None]]:
    """A new head of `pqm-fast probe`, for states of variance 1, and an epoch of the steps that the command takes."""
    from pqm_fast.probe.heads import HeadSpec
    from pqm_fast.probe.layout import HeadBatch
    from pqm_fast.probe.train_head import HeadOptions, Scale, ScaledHead, make_optimizer, take_step

    hidden = batches[0].hidden
    width, device = hidden.shape[1], hidden.device
    head = ScaledHead(Scale(torch.zeros(width, device=device), torch.ones(width, device=device)))
    spec = HeadSpec(layer=1, loss="rank", zeta=ZETA, compare_weight=None, learning_rate=LEARNING_RATE, seed=0)
    options = HeadOptions(
        norm=(norm_weight(width, device), NORM_EPS), temperature=1.0, noise=(0.0, 0.0), epochs=1, patience=1,
        weight_decay=WEIGHT_DECAY,
    )  # fmt: skip
    optimizer = make_optimizer(head, spec, options)
    steps = [
        HeadBatch(
            slice(0, len(b.hidden)), b.step_index, b.by_row, b.labels, b.cu_steps, cu_groups=None, siblings=None,
            outcomes=None, members=(),
        )
        for b in batches
    ]  # fmt: skip

    def epoch() -> None:
        for step, batch in zip(steps, batches, strict=True):
            take_step(head, optimizer, step, batch.hidden, spec, options)

    return head, epoch


def graph_of(head: Head, batches: list[Batch]) -> Callable[[], None]:
    """The same as one CUDA graph, in which the host launches nothing.

    Takes an epoch before, in which the optimizer makes its state. Raises PQMError if the graph trains otherwise.
    """
    epoch, other = epoch_of(head, batches), Head(len(head.weight), head.weight.device, head.backend)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(torch.cuda.current_stream()):  # a capture that fails leaves its own stream behind
        with torch.cuda.stream(stream):
            epoch()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            epoch()
    graph.replay()
    for _ in range(2):
        epoch_of(other, batches)()
    if not (torch.equal(head.weight, other.weight) and torch.equal(head.bias, other.bias)):
        raise PQMError("a CUDA graph trains another head than its launches; nothing is timed until that is fixed")
    return graph.replay


def check(width: int, backend: str, batch: Batch) -> None:
    """Compares the gradient of the head with that of `step_loss(backend="eager")`.

    Raises:
        PQMError: they differ by more than rounding.
    """
    heads = [Head(width, batch.hidden.device, name) for name in (backend, "eager")]
    for head in heads:
        with torch.no_grad():
            head.weight.copy_(torch.linspace(-1, 1, width) / math.sqrt(width))
        head.gradient(batch)
    ours, plain = (head.weight.grad for head in heads)
    assert ours is not None
    assert plain is not None
    if not (error := relative_error(ours, plain)) <= 1e-5:  # NaN is wrong too
        raise PQMError(
            f"the gradient of the head is off by {error:.2g} of its size, more than 1e-5; it is not timed until that "
            "is fixed"
        )
