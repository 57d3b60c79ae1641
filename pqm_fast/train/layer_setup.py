"""Sets up how the decoder layers of a run's model are computed, from the options and the memory of the device."""

from collections.abc import Callable

import torch

from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.ranks.group import Ranks
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.layers import compile_layers, decoder_layers, recompute, use_float8, use_liger
from pqm_fast.train.lora import add_adapters
from pqm_fast.train.memory import Sharing, Sizes, fit_memory
from pqm_fast.train.optim import sum_gradients_in_float32
from pqm_fast.train.resume import Start
from pqm_fast.train.sharding import shards


def set_up_layers(model: StepQModel, config: TrainConfig, ranks: Ranks, notes: list[str]) -> None:
    """Adds adapters, 8-bit products and the kernels of `config.layers`. Raises PQMError for what the device, the
    installed packages or several ranks cannot do."""
    if ranks.world > 1:
        decoder_layers(model)  # raises PQMError if they are not found: each layer is sharded by itself
        if config.optimizer == "adamw-8bit":
            raise PQMError(
                "optimizer: adamw-8bit runs in one process: its blocks of 256 weights cannot be divided otherwise when "
                "a run is resumed; leave it out, since sharding divides the memory of adamw by the number of processes"
            )
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
    model: StepQModel,
    start: Start,
    ranks: Ranks,
    *,
    longest: int,
    tree_ratio: Callable[[], float],
    notes: list[str],
) -> Sizes:
    """Settles the sizes that the options leave to the memory of the device, for trajectories of at most `longest`
    tokens, and sets up the model for them. `tree_ratio`: see `fit_memory`. All ranks take those of rank 0, for the
    memory that is free there."""
    config = start.config
    sharing = Sharing(ranks.world, shards(ranks, config.shard_within), ranks.local_world)
    sizes, note = ranks.from_first(
        lambda: fit_memory(
            model,
            start.micro_batch_tokens,
            start.micro_batches(ranks.world),
            config.recompute_layers,
            longest=longest,
            optimizer=config.optimizer,
            tree_ratio=tree_ratio,
            sharing=sharing,
        )
    )
    if note is not None:
        notes.append(note)
    if config.float8 and sizes.micro_batch_tokens % 16:
        raise PQMError(f"float8: micro_batch_tokens must be a multiple of 16, found {sizes.micro_batch_tokens}")
    recompute(model, sizes.recompute_layers)
    if sizes.rounds(ranks.world) > 1 and ranks.world == 1:  # sharded gradients always add up in float32
        sum_gradients_in_float32(model)
    return sizes
