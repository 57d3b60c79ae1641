"""Made-up packed batches for the kernel benchmark. There are so many that no call finds its input in the L2 cache."""

import math
from dataclasses import dataclass

import torch
from pqm_kernels import Siblings, siblings
from torch import Tensor

from pqm_fast.errors import PQMError


@dataclass(frozen=True)
class Size:
    """Rows of `hidden` (T), steps (S) and trajectories (B) of one batch."""

    rows: int
    steps: int
    trajectories: int


SIZES = {
    "tiny": Size(256, 32, 4),  # runs anywhere, and says nothing about speed
    "training": Size(32768, 1024, 128),  # one micro-batch with a step every 32 tokens: launches cost more than bytes
    "long": Size(32768, 1024, 2),  # as many rows in two long chains of thought
    "bandwidth": Size(131072, 65536, 8192),  # every other row is a step: moving the bytes takes the time
}
COLD = 3  # the step rows of all batches that take turns are at least this many times the L2
MOST_BATCHES = 256  # only the size tiny needs more
SOLUTIONS = 16  # of a question


@dataclass(frozen=True)
class Inputs:
    """One batch. Every step reads another row, and rows rise from step to step and from trajectory to trajectory.

    Attributes:
        hidden: [T, D], standard normal.
        step_index: [S] int64, the row that each step reads.
        labels: [S] float32, three out of four are 1, the others 0.
        cu_steps: [B + 1] int32, where the steps of each trajectory start.
        weight, bias, norm_weight: [D], [1] and [D] float32, with values that bfloat16 can represent.
        slots: [S] int64, the index of each step in a flat [B * L], where L is the steps of the longest trajectory.
        padded_index: [B, L] int64, the row of each step, 0 in padding.
        padded_labels: [B, L] float32, -100 in padding.
        cu_groups: [Q + 1] int32, where the trajectories of each question start.
        parent: [S] int64, the prefix that each step continues. The solutions of a question branch in two at each step.
        siblings: the steps sorted by it, as the packer makes them.
    """

    hidden: Tensor
    step_index: Tensor
    labels: Tensor
    cu_steps: Tensor
    weight: Tensor
    bias: Tensor
    norm_weight: Tensor
    slots: Tensor
    padded_index: Tensor
    padded_labels: Tensor
    cu_groups: Tensor
    parent: Tensor
    siblings: Siblings


def make_inputs(size: Size, width: int, dtype: torch.dtype, device: torch.device, seed: int, number: int) -> Inputs:
    """Batch `number` of those that take turns. They differ in values, rows and order of lengths, not in shapes."""
    # all batches with this seed have the same lengths; their mean is S / B and the shortest is 1
    common = torch.Generator().manual_seed(seed)
    of_batch = torch.Generator().manual_seed(1_000_003 * seed + number + 1)
    extra = torch.randint(size.trajectories, (size.steps - size.trajectories,), generator=common)
    lengths = 1 + torch.bincount(extra, minlength=size.trajectories)
    longest = int(lengths.max())
    lengths = lengths[torch.randperm(size.trajectories, generator=of_batch)]
    cu_steps = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    step_index = torch.randperm(size.rows, generator=of_batch)[: size.steps].sort().values
    labels = (torch.rand(size.steps, generator=of_batch) < 0.75).float()
    trajectory = torch.arange(size.trajectories).repeat_interleave(lengths)
    slots = trajectory * longest + torch.arange(size.steps) - cu_steps[trajectory]

    def padded(values: Tensor, padding: int) -> Tensor:
        flat = torch.full((size.trajectories * longest,), padding, dtype=values.dtype)
        return flat.index_copy(0, slots, values).view(size.trajectories, longest)

    starts = torch.arange(0, size.trajectories, SOLUTIONS)
    cu_groups = torch.cat([starts, torch.tensor([size.trajectories])]).int()
    depth = torch.arange(size.steps) - cu_steps[trajectory]
    parent = depth * SOLUTIONS + (trajectory % SOLUTIONS) * 2 ** depth.clamp(max=4) // SOLUTIONS
    weight = torch.randn(width, generator=of_batch) / math.sqrt(width)
    on_device = torch.Generator(device).manual_seed(1_000_003 * seed + number + 1)
    tensors = {
        "step_index": step_index,
        "labels": labels,
        "cu_steps": cu_steps.int(),
        "weight": weight.bfloat16().float(),
        "bias": torch.full((1,), 0.25),
        "norm_weight": (torch.rand(width, generator=of_batch) + 0.5).bfloat16().float(),
        "slots": slots,
        "padded_index": padded(step_index, 0),
        "padded_labels": padded(labels, -100),
        "cu_groups": cu_groups,
        "parent": parent,
    }
    inputs = Inputs(
        hidden=torch.randn(size.rows, width, generator=on_device, dtype=dtype, device=device),
        siblings=Siblings(*(tensor.to(device) for tensor in siblings(parent, cu_steps, cu_groups))),
        **{name: tensor.to(device) for name, tensor in tensors.items()},
    )
    for leaf in (inputs.hidden, inputs.weight, inputs.bias, inputs.norm_weight):
        leaf.requires_grad_()
    return inputs


def count_inputs(size: Size, width: int, dtype: torch.dtype, device: torch.device) -> int:
    """The number of batches that take turns. On a GPU it is so large that no call finds its step rows in the L2.

    Raises:
        PQMError: the batches and their gradients do not fit the device's memory.
    """
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    count = math.ceil(COLD * cache / (size.steps * width * dtype.itemsize))
    count = min(max(count, 2), MOST_BATCHES)
    torch.cuda.empty_cache()  # frees the memory of the previous width
    needed, (free, _) = 2 * count * size.rows * width * dtype.itemsize, torch.cuda.mem_get_info(device)
    if needed > 0.7 * free:
        raise PQMError(
            f"width {width}: inputs that are cold in the L2 take {needed / 2**30:.1f} GiB of the {free / 2**30:.1f} "
            "GiB that are free; leave out this width or choose a GPU with more memory"
        )
    return count


def floor_bytes(inputs: Inputs, backward: bool) -> int:
    """The fewest bytes that must move: each step row is read once forward and once backward, and the gradient of
    `hidden` is written once."""
    rows, width = inputs.hidden.shape
    read = inputs.step_index.unique().numel() * (2 if backward else 1)
    return (read + (rows if backward else 0)) * width * inputs.hidden.element_size()
