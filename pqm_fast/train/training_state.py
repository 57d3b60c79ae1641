"""Everything that training changes, as tensors with names: what a checkpoint holds."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pqm_fast.train.finite import plain_parts
from pqm_fast.train.guard import StepGuard
from pqm_fast.train.sharding import Part, like, local


@dataclass(frozen=True)
class TrainingState:
    """The weights, what the optimizer keeps for each of them, and the gradient norms that a new one is compared with.

    Names: `model.NAME`, `optimizer.NAME.KEY` and `guard.norms`. A tensor that is sharded, or belongs to a parameter
    that is, is a DTensor: a checkpoint of it can be read on any number of ranks.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    own: list[Part]
    guard: StepGuard

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, in their own memory, except that counts of steps are new ones."""
        named = {f"model.{name}": tensor for name, tensor in model_tensors(self.model).items()}
        for part in self.own:
            for key, value in self.optimizer.state.get(part.local, {}).items():
                name = f"optimizer.{part.name}.{key}"
                named |= {f"{name}{end}": plain for end, plain in plain_parts(_tensor_of(value, part)).items()}
        return {name: tensor.detach() for name, tensor in named.items()} | {"guard.norms": self.guard.norms}

    def make_optimizer_state(self, names: Iterable[str]) -> None:
        """Makes the state that the optimizer has after its first step, for the parameters that `names` (see above)
        speak of. Weights and state are meant to be overwritten."""
        known = set(names)
        for part in self.own:
            if any(name.startswith(f"optimizer.{part.name}.") for name in known):
                part.local.grad = torch.zeros_like(part.local, dtype=part.local.grad_dtype)
        self.optimizer.step()
        for part in self.own:
            part.local.grad = None

    def take_counts(self, tensors: dict[str, torch.Tensor]) -> None:
        """Sets the counts of steps, which optimizers keep as numbers, from `tensors`."""
        for part in self.own:
            state = self.optimizer.state.get(part.local, {})
            for key, value in state.items():
                if isinstance(value, int):
                    state[key] = int(tensors[f"optimizer.{part.name}.{key}"])

    def parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's part of every tensor, with a name for messages."""
        for name, parameter in self.model.named_parameters():
            yield name, local(parameter)
        for part in self.own:
            for key, value in self.optimizer.state.get(part.local, {}).items():
                if isinstance(value, torch.Tensor):
                    yield f"{part.name} ({key} of the optimizer)", value


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers. Tied ones appear once, under the name that comes first."""
    persistent = model.state_dict(keep_vars=True).keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return dict(model.named_parameters()) | buffers


def _tensor_of(value: Any, part: Part) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return torch.tensor(value)
    return like(value, part.parameter) if value.shape == part.local.shape else value
