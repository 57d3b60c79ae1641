"""Sets up how the decoder layers of a run's model are computed, from the options and the memory of the device."""

from collections.abc import Callable

import torch

from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.layers import compile_layers, recompute, use_float8, use_liger
from pqm_fast.train.lora import add_adapters
from pqm_fast.train.memory import Sizes, fit_memory
from pqm_fast.train.optim import sum_gradients_in_float32
from pqm_fast.train.resume import Start


def set_up_layers(model: StepQModel, config: TrainConfig, notes: list[str]) -> None:
    """Adds adapters, 8-bit products and the kernels of `config.layers`. Raises PQMError for what the device or the
    installed packages cannot do."""
    if config.lora_rank:
        add_adapters(model, config.lora_rank, config.lora_alpha)
        notes.append("only adapters and the Q-value head learn; the embedding of a new step token stays as it is")
    if (config.float8 or config.layers == "liger") and model.device.type != "cuda":
        raise PQMError(f"{'float8' if config.float8 else 'layers: liger'} needs a GPU, and the model is on the CPU")
    if config.float8:
        if torch.cuda.get_device_capability(model.device) < (8, 9):
            raise PQMError("float8: needs a GPU of compute capability 8.9 or more")
        notes.append(f"{use_float8(model):,} matrix products in 8-bit floats")
    if config.layers == "liger":
        use_liger(model)
    elif config.layers == "compile" or (config.layers == "auto" and model.device.type == "cuda"):
        compile_layers(model)


def settle_sizes(
    model: StepQModel, start: Start, *, longest: int, tree_ratio: Callable[[], float], notes: list[str]
) -> Sizes:
    """Settles the sizes that the options leave to the memory of the device, for trajectories of at most `longest`
    tokens, and sets up the model for them. `tree_ratio`: see `fit_memory`."""
    config = start.config
    sizes, note = fit_memory(
        model,
        start.micro_batch_tokens,
        start.accumulation,
        config.recompute_layers,
        longest=longest,
        optimizer=config.optimizer,
        tree_ratio=tree_ratio,
    )
    if note is not None:
        notes.append(note)
    if config.float8 and sizes.micro_batch_tokens % 16:
        raise PQMError(f"float8: micro_batch_tokens must be a multiple of 16, found {sizes.micro_batch_tokens}")
    recompute(model, sizes.recompute_layers)
    if sizes.accumulation > 1:
        sum_gradients_in_float32(model)
    return sizes
