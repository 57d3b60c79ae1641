"""Divides the weights of a model among the ranks (FSDP2): each keeps a part of every parameter, and updates that part.

The layers are gathered one by one when they are computed, so that the fused op and all other code see plain tensors.
The Q-value head, D + 1 numbers, is whole on every rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.ranks.group import Ranks
from pqm_fast.train.layers import decoder_layers


@dataclass(frozen=True)
class Part:
    """What one rank keeps of a parameter: all of it, if it is not sharded."""

    name: str
    parameter: nn.Parameter
    """The parameter of the model, a DTensor if it is sharded."""
    local: nn.Parameter
    """This rank's part, in the memory of `parameter`. The optimizer updates it."""

    @property
    def sharded(self) -> bool:
        return self.local is not self.parameter

    def take_gradient(self) -> torch.Tensor | None:
        """The gradient of `local`, taken from `parameter`."""
        if self.sharded:
            gradient = self.parameter.grad
            self.local.grad = None if gradient is None else local(gradient)
        return self.local.grad


def shards(ranks: Ranks, within: int | None) -> int:
    """How many parts a parameter has: one for each rank, or `within` of them. Raises PQMError if the ranks cannot be
    divided into groups of `within`."""
    if within is None or ranks.world == 1:
        return ranks.world
    if ranks.world % within:
        raise PQMError(
            f"shard_within: {within} was given; it must divide the number of processes, {ranks.world} (a run that is "
            "resumed may have another)"
        )
    return within


def shard(model: StepQModel, ranks: Ranks, within: int | None = None) -> None:
    """Shards the trained and the frozen weights, in place; one rank changes nothing.

    `within`: the ranks of each group of that size have a whole copy of the weights among them, and gradients are summed
    over the groups (hybrid sharding). Gradients are summed, not averaged: in float32, whatever the dtype of the
    weights, and those of several micro-batches add up in float32 too. Raises PQMError as `shards` does.
    """
    within = shards(ranks, within)
    if ranks.world == 1:
        return
    shape, names = ((ranks.world,), ("shard",))
    if within < ranks.world:
        shape, names = (ranks.world // within, within), ("copy", "shard")  # type: ignore[assignment]
    mesh = init_device_mesh(model.device.type, shape, mesh_dim_names=names)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=set(model.head.parameters()))
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # without it NCCL would multiply by 1 before it sums
    for parameter in model.parameters():
        if isinstance(parameter, DTensor) and parameter.dtype != torch.float32 and parameter.requires_grad:
            parameter.grad_dtype = None  # any
            parameter.register_post_accumulate_grad_hook(_widen)


def _widen(parameter: torch.Tensor) -> None:
    """Makes the gradient of the first micro-batch float32. FSDP2 has reduced it in float32 and rounded it, as autograd
    rounds it on one GPU, and adds the next ones to it."""
    if parameter.grad is not None and parameter.grad.dtype != torch.float32:
        parameter.grad = parameter.grad.float()


def parts(model: nn.Module) -> list[Part]:
    """This rank's part of each parameter that is trained."""
    found = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = parameter
            if isinstance(parameter, DTensor):
                own = nn.Parameter(local(parameter.detach()))
                own.grad_dtype = None  # that of the sharded gradient
            found.append(Part(name, parameter, own))
    return found


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, in its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, parameter: torch.Tensor, mesh: DeviceMesh | None = None) -> torch.Tensor:
    """A tensor of the shape of a rank's part of `parameter`, as a part of a whole that is sharded as `parameter` is,
    over `mesh` (default: that of `parameter`)."""
    if not isinstance(parameter, DTensor):
        return tensor
    return DTensor.from_local(
        tensor,
        mesh or parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor, gathered from all ranks; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def replicated(found: Sequence[Part]) -> Iterator[nn.Parameter]:
    """The parameters that every rank has whole, although others are sharded."""
    if any(part.sharded for part in found):
        yield from (part.parameter for part in found if not part.sharded)
