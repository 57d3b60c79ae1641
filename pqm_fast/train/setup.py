"""What a run needs before its first step: model, tokenizer, tokens and the split, each checked."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from pqm_kernels import LOSSES
from transformers import PreTrainedTokenizerBase

from pqm_fast.common.yaml_file import write_yaml
from pqm_fast.data.balance import one_sided
from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.dataset import TrajectoryDataset
from pqm_fast.data.encode import Encoder
from pqm_fast.data.pack import PackedBatch, pack
from pqm_fast.data.questions import split_by_question
from pqm_fast.data.token_cache import load_dataset
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError
from pqm_fast.model.device import pick_device, pick_dtype
from pqm_fast.model.identity import identify_model
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.model.tokenizer import load_tokenizer
from pqm_fast.train.checkpoint import Checkpoint
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.layers import compile_layers, recompute, use_float8, use_liger
from pqm_fast.train.lora import add_adapters
from pqm_fast.train.memory import Sizes, fit_memory
from pqm_fast.train.optim import sum_gradients_in_float32
from pqm_fast.train.resume import find_checkpoint


@dataclass
class Split:
    """Some trajectories of a data set, with the labels as the loss takes them."""

    dataset: TrajectoryDataset
    indices: np.ndarray
    label_threshold: float | None
    prefix_tree: bool

    def __len__(self) -> int:
        return len(self.indices)

    def trajectory(self, i: int) -> Trajectory:
        found = self.dataset[i]
        if self.label_threshold is None:
            return found
        hard = np.where(np.isnan(found.labels), np.nan, found.labels >= self.label_threshold)
        return replace(found, labels=hard.astype(np.float32))

    def units(self, indices: np.ndarray, budget: int) -> PackingUnits:
        """`indices` in units for batches of `budget` tokens."""
        if not self.prefix_tree:
            return PackingUnits.single(indices, self.dataset.lengths[indices])
        return PackingUnits.prefix_trees(
            indices, self.dataset.question[indices], lambda i: self.dataset[i].input_ids, budget
        )

    def tree_ratio(self, sample: int = 4096) -> float:
        """Tokens of a question's trajectories over those to compute: what 19 of 20 questions do not exceed, in a sample
        of trajectories; 1 without prefix trees."""
        if not self.prefix_tree:
            return 1.0
        own = self.indices[np.argsort(self.dataset.question[self.indices], kind="stable")[:sample]]
        units = self.units(own, int(self.dataset.lengths[own].sum()))
        totals = np.add.reduceat(self.dataset.lengths[units.members], np.append(0, units.ends[:-1]))
        return float(np.quantile(totals / units.sizes, 0.95))

    def pack(self, members: np.ndarray, pad_to: int | None = None) -> PackedBatch:
        pairs = [(int(i), self.trajectory(i)) for i in members]
        return pack(pairs, question=self.dataset.question[members] if self.prefix_tree else None, pad_to=pad_to)


@dataclass
class Run:
    """Everything that the loop works on."""

    config: TrainConfig
    device: torch.device
    model: StepQModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    training: Split
    held_out: Split
    sizes: Sizes
    """How an optimizer step is cut up."""
    units: PackingUnits
    """Of the training trajectories."""
    total_steps: int
    notes: list[str]
    begun: Checkpoint | None
    """Where a run that goes on does so."""
    model_identity: dict[str, Any]
    """Of the model as it was before the first step."""

    @property
    def pad_to(self) -> int | None:
        """Fixed shapes keep a GPU's allocator steady, and compiled layers from being compiled again."""
        fixed = self.device.type == "cuda" or self.config.layers == "compile"
        return self.sizes.micro_batch_tokens if fixed else None


def prepare(config: TrainConfig) -> Run:
    """Loads and checks everything; raises PQMError before anything is written into the run folder, where only a
    damaged config.yaml is mended."""
    notes: list[str] = []
    begun = find_checkpoint(config, notes)
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    model = StepQModel.from_pretrained(
        config.model,
        dtype=_dtype(config, device, begun, notes),
        device=device,
        attention=config.attention,
        notes=notes,
    )
    model_identity = identify_model(config.model, model.config)
    tokenizer = load_tokenizer(config.model, notes)
    if not type(model.classifier).__module__.startswith("transformers."):
        notes.append(
            f"transformers has no {type(model.classifier).__name__}: the checkpoint loads through pqm_fast, "
            "not in other programs"
        )
    template = config.template.resolve(tokenizer)
    if not model.step_rows_only:
        notes.append(f"{model.config.model_type}: the last layer computes every token, not only those that steps read")
    if added := model.fit_vocabulary(tokenizer, template.step_token):
        notes.append(added)

    most = model.context if config.micro_batch_tokens == "auto" else config.micro_batch_tokens
    length = config.max_length or min(model.context, 4096, most)
    if length > model.context:
        raise PQMError(f"max_length: {length} is more than the model's context of {model.context} tokens")
    if length > most:
        raise PQMError(f"max_length: a trajectory of {length} tokens does not fit micro_batch_tokens={most}")
    prepare_layers(model, config, notes)
    encoder = Encoder(tokenizer, template, length)
    training = _load(config.data, config, encoder, notes)
    if config.eval_data:
        held_out = _load(config.eval_data, config, encoder, notes)
        shared = np.isin(training.dataset.question, held_out.dataset.question)
        training.indices = training.indices[~shared[training.indices]]
        if shared.any():
            notes.append(f"{shared.sum():,} training trajectories left out: their questions are in the held-out data")
    else:
        held_out = copy.copy(training)
        chosen, apart = split_by_question(
            training.dataset.question[training.indices], config.eval_fraction, config.seed
        )
        held_out.indices, training.indices = training.indices[apart], training.indices[chosen]
    if not len(training):
        raise PQMError(f"{', '.join(config.data)}: no trajectory is left to train on")

    sizes = settle_sizes(model, config, length, training.tree_ratio, begun, notes)
    run = Run(
        config=config,
        device=device,
        model=model,
        tokenizer=tokenizer,
        recipe=Recipe(template, config.loss, config.zeta),
        training=training,
        held_out=held_out,
        sizes=sizes,
        units=training.units(training.indices, sizes.micro_batch_tokens),
        total_steps=0,
        notes=notes,
        begun=begun,
        model_identity=model_identity,
    )
    if config.prefix_tree:
        total, unique = training.dataset.lengths[training.indices].sum(), run.units.sizes.sum()
        notes.append(
            f"prefix trees: {unique:,} tokens to compute instead of {total:,}, {total / unique:.2f} times fewer"
        )
    run.total_steps = config.max_steps or _steps_of(run, config.epochs)
    return run


def _dtype(config: TrainConfig, device: torch.device, begun: Checkpoint | None, notes: list[str]) -> torch.dtype:
    """A run goes on in the dtype that it began with, whatever would be picked now."""
    if begun is None or config.dtype != "auto":
        return pick_dtype(config.dtype, device, config.model, notes)
    return getattr(torch, begun.state["dtype"])


def prepare_layers(model: StepQModel, config: TrainConfig, notes: list[str]) -> None:
    """Sets up how the layers are computed."""
    if config.lora_rank:
        add_adapters(model, config.lora_rank, config.lora_alpha)
        notes.append("only adapters and the Q-value head learn; the embedding of a new step token stays as it is")
    if (config.float8 or config.layers == "liger") and model.device.type != "cuda":
        raise PQMError(f"{'float8' if config.float8 else 'layers: liger'} needs a GPU, and the model is on the CPU")
    if config.float8:
        if torch.cuda.get_device_capability(model.device) < (8, 9):
            raise PQMError("float8: needs a GPU of compute capability 8.9 or more")
        notes.append(f"{use_float8(model):,} products of matrices in 8-bit floats")
    if config.layers == "liger":
        use_liger(model)
    elif config.layers == "compile" or (config.layers == "auto" and model.device.type == "cuda"):
        compile_layers(model)


def settle_sizes(
    model: StepQModel,
    config: TrainConfig,
    longest: int,
    tree_ratio: Callable[[], float],
    begun: Checkpoint | None,
    notes: list[str],
) -> Sizes:
    """Settles what the options leave to the memory that there is, for trajectories of at most `longest` tokens.

    `begun`: of a run to be continued, which keeps its sizes.
    """
    tokens, accumulation = config.micro_batch_tokens, config.accumulation
    if begun is not None:
        tokens, accumulation = begun.state["micro_batch_tokens"], begun.state["accumulation"]
    sizes, note = fit_memory(
        model,
        tokens,
        accumulation,
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


def optimizer_steps(run: Run, start: int = 0) -> Iterator[list[np.ndarray]]:
    """The micro-batches of each optimizer step from step `start` on, as trajectory numbers; deterministic from the
    seed, so that a continued run sees what it would have seen."""
    epochs = chain.from_iterable(_plan(run, epoch) for epoch in count())
    return islice(epochs, start, run.total_steps)


def _plan(run: Run, epoch: int) -> list[list[np.ndarray]]:
    """The optimizer steps of one pass over the data; the last one may have fewer micro-batches than the others."""
    size = run.sizes.accumulation
    batches = run.units.batches(run.sizes.micro_batch_tokens, seed=run.config.seed, epoch=epoch)
    return [batches[i : i + size] for i in range(0, len(batches), size)]


def _steps_of(run: Run, epochs: float) -> int:
    """Optimizer steps of so many passes; the number of batches varies a little from pass to pass."""
    whole, part = int(epochs), epochs - int(epochs)
    steps = sum(len(_plan(run, epoch)) for epoch in range(whole))
    return max(1, steps + (math.ceil(part * len(_plan(run, whole))) if part else 0))


def write_config(config: TrainConfig) -> None:
    """config.yaml in the run folder: every option as it was in force, readable with `--config`."""
    write_yaml(config.folder / "config.yaml", config.to_store())


def _load(paths: tuple[str, ...], config: TrainConfig, encoder: Encoder, notes: list[str]) -> Split:
    dataset = load_dataset(paths, config.read, encoder, config.cache_dir)
    notes += dataset.notes
    indices = np.arange(len(dataset))
    if config.loss == "orm" and (cut := dataset.steps_cut > 0).any():
        notes.append(f"{cut.sum():,} trajectories left out: orm needs the last step, and theirs was cut off")
        indices = indices[~cut]
    soft = LOSSES[config.loss].soft_labels or config.label_threshold is not None
    labels = dataset.columns["labels"]
    if found := one_sided(labels, config.label_threshold or 0.5):
        notes.append(f"warning: {', '.join(paths)}: {found}")
    if not soft and len(wrong := np.flatnonzero((labels > 0) & (labels < 1))):
        record = dataset.name(dataset.trajectory_of_step(int(wrong[0])))
        raise PQMError(
            f"{', '.join(paths)}: record {record}: label {labels[wrong[0]]:g} is neither 0 nor 1, which the loss "
            f"{config.loss} needs ({len(wrong):,} such labels); give --label-threshold 0.5, or a loss for soft labels "
            "(bce, mse)"
        )
    return Split(dataset, indices, config.label_threshold, config.prefix_tree)
