"""The weights of the finished model, as other programs load them."""

from collections.abc import Sequence

import torch
from pqm_kernels import AdamW

from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.train.lora import adapted, merged_state
from pqm_fast.train.sharding import Part, like, whole


def final_weights(
    model: StepQModel,
    optimizer: torch.optim.Optimizer,
    own: Sequence[Part],
    dtype: torch.dtype,
    ranks: Ranks = ALONE,
) -> dict[str, torch.Tensor]:
    """The state dict of the classifier in `dtype` on the CPU, with adapters merged in; on rank 0, and {} on the others,
    which must call it too. For float32, trained weights are the optimizer's master weights."""
    trained = {id(part.parameter): part for part in own}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.classifier.state_dict(keep_vars=True).items():
        part = trained.get(id(tensor))
        if dtype == torch.float32 and isinstance(optimizer, AdamW) and part is not None:
            tensor = like(optimizer.master(part.local), part.parameter)
        gathered = whole(tensor.detach())  # one after the other, so that the device holds one at a time
        if ranks.first:
            state[name] = gathered.cpu()
    if ranks.first and adapted(model.classifier):
        state = merged_state(model.classifier, state)
    return {name: tensor.to(dtype) for name, tensor in state.items()}
