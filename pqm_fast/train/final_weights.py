"""The weights of the finished model, as other programs load them."""

import torch
from pqm_kernels import AdamW

from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.lora import adapted, merged_state


def final_weights(model: StepQModel, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict of the classifier in `dtype`, with adapters merged in. For float32, trained weights that are not
    adapters are the optimizer's master weights."""
    state = merged_state(model.classifier) if adapted(model.classifier) else model.classifier.state_dict()
    if dtype == torch.float32 and isinstance(optimizer, AdamW):
        trained = {name: p for name, p in model.classifier.named_parameters() if p.requires_grad and name in state}
        state |= {name: optimizer.master(p).cpu() for name, p in trained.items()}
    return {name: tensor.detach().to(dtype) for name, tensor in state.items()}
