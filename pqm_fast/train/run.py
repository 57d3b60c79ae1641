"""Loads and checks everything that a run needs before its first step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from pqm_fast.data.encode import Encoder
from pqm_fast.errors import PQMError
from pqm_fast.model.device import pick_device, pick_dtype
from pqm_fast.model.identity import identify_model
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.train.backbone import load_backbone
from pqm_fast.train.comparisons import check_comparisons, divided_questions
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.deal import work_of_model
from pqm_fast.train.exclude import excluded_digest
from pqm_fast.train.init_head import take_head
from pqm_fast.train.layer_setup import set_up_layers, settle_sizes
from pqm_fast.train.objective import Objective, make_objective
from pqm_fast.train.outcomes import outcomes_digest
from pqm_fast.train.resume import Start, check_same_run, find_start
from pqm_fast.train.run_identity import run_identity
from pqm_fast.train.schedule import StepOrder
from pqm_fast.train.sharding import Part, parts, shard
from pqm_fast.train.split import Split, training_and_held_out

Value = TypeVar("Value")
DEFAULT_LENGTH = 4096  # longest trajectory in tokens, where the model has a longer context


@dataclass(frozen=True)
class Run:
    """Everything that the loop works on."""

    config: TrainConfig
    start: Start
    device: torch.device
    model: StepQModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    encoder: Encoder
    training: Split
    held_out: Split
    objective: Objective
    own: list[Part]
    """What this rank keeps of each parameter that is trained."""
    ranks: Ranks
    order: StepOrder
    """The order of the optimizer steps over the training trajectories."""
    total_steps: int
    identity: dict[str, Any]
    """What a run that is resumed must have in common with its checkpoint."""
    notes: tuple[str, ...]
    """What to tell the user before the first step."""
    data_notes: tuple[str, ...]
    """Those of them about records that were left out or cut."""

    @property
    def pad_to(self) -> int | None:
        """Tokens that micro-batches are padded to, if their shape is fixed. Fixed shapes keep a GPU's allocator steady,
        and save compiled layers from being compiled again."""
        fixed = self.device.type == "cuda" or self.config.layers == "compile"
        return self.order.sizes.micro_batch_tokens if fixed else None

    def describe(self) -> str:
        """The run in a few lines, with its notes."""
        parameters = sum(p.numel() for p in self.model.parameters())
        processes = "" if self.ranks.world == 1 else f" in {self.ranks.world} processes"
        tokens = int(self.training.dataset.lengths[self.training.indices].sum())
        sizes = self.order.sizes
        lines = [
            f"{self.model.config.model_type}, {parameters:,} parameters, {self.device.type}{processes}; loss "
            f"{self.objective}",
            f"{len(self.training):,} trajectories to train on ({tokens:,} tokens), {len(self.held_out):,} held out; "
            f"{self.total_steps:,} steps of {sizes.micro_batches:,} x {sizes.micro_batch_tokens:,} tokens at most, "
            f"{sizes.recompute_layers} layers computed again in the backward pass",
            *self.notes,
        ]
        return "\n".join(lines)


def prepare(config: TrainConfig, ranks: Ranks = ALONE) -> Run:
    """Loads and checks everything that a run needs, on every rank.

    Raises PQMError before anything is written into the run folder; only a damaged config.yaml there is repaired.
    """
    notes: list[str] = []
    start, first_notes = ranks.from_first(lambda: _noted(lambda notes: find_start(config, notes)))
    notes += first_notes
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    ranks.check_device(device)
    dtype, first_notes = ranks.from_first(
        lambda: _noted(lambda notes: pick_dtype(start.dtype, device, config.model, notes))
    )
    notes += first_notes
    model, tokenizer, template = load_backbone(config, dtype, device, notes)
    if start.checkpoint is None:  # otherwise the weights and the head are those of the checkpoint
        if config.init_head is not None:
            notes += take_head(model, config.init_head, template)
        notes += model.load_report.notes
    model_identity = ranks.from_first(lambda: identify_model(config.model, model.config))
    length = _longest_trajectory(config, model.context)
    set_up_layers(model, config, ranks, notes)

    encoder = Encoder(tokenizer, template, length)
    # the first rank of a machine tokenises, and the others find the tokens
    (training, held_out), data_notes = ranks.one_by_machine(
        lambda: _noted(lambda notes: training_and_held_out(config, encoder, notes))
    )
    notes += data_notes
    check_comparisons(config, training, notes)
    objective = make_objective(config, training, notes)
    sizes = settle_sizes(model, start, ranks, longest=length, tree_ratio=training.tree_ratio, notes=notes)
    order = StepOrder(
        training.units(training.indices, sizes.micro_batch_tokens), sizes, config.seed, work_of_model(model)
    )
    notes += _about_packing(config, training, held_out, order)
    if ranks.world > sizes.micro_batches:
        notes.append(
            f"warning: an optimizer step has {sizes.micro_batches} micro-batches for {ranks.world} processes, so "
            f"{ranks.world - sizes.micro_batches} of them always wait"
        )
    total_steps = config.max_steps or order.count_steps(config.epochs)
    identity = run_identity(
        model=model_identity,
        data=training.dataset.digest,
        outcomes=outcomes_digest(training.outcomes),
        excluded=excluded_digest(config.exclude),
        trajectories=len(training),
        total_steps=total_steps,
        sizes=sizes,
        template=template,
    )
    if extension := check_same_run(start, identity, total_steps, evaluates=bool(len(held_out))):
        notes.append(extension)
    shard(model, ranks, config.shard_within)
    return Run(
        config=config,
        start=start,
        device=device,
        model=model,
        tokenizer=tokenizer,
        recipe=objective.recipe(template),
        encoder=encoder,
        training=training,
        held_out=held_out,
        objective=objective,
        own=parts(model),
        ranks=ranks,
        order=order,
        total_steps=total_steps,
        identity=identity,
        notes=tuple(notes),
        data_notes=tuple(data_notes),
    )


def _noted(make: Callable[[list[str]], Value]) -> tuple[Value, list[str]]:
    """What `make` returns, and the notes that it takes."""
    notes: list[str] = []
    return make(notes), notes


def _about_packing(config: TrainConfig, training: Split, held_out: Split, order: StepOrder) -> Iterator[str]:
    """What to tell about questions that are divided, and about what prefix trees save."""
    budget = order.sizes.micro_batch_tokens
    if config.whole_questions:
        evaluated = held_out.units(held_out.indices, budget)
        divided = divided_questions(order.units, budget), divided_questions(evaluated, budget, " held out")
        yield from (note for note in divided if note)
    if config.prefix_tree:
        total, unique = training.dataset.lengths[training.indices].sum(), order.units.sizes.sum()
        yield f"prefix trees: {unique:,} tokens to compute instead of {total:,}, {total / unique:.2f} times fewer"


def _longest_trajectory(config: TrainConfig, context: int) -> int:
    """Tokens of the longest trajectory. Raises PQMError if it does not fit the model's context or a micro-batch."""
    most_tokens = context if config.micro_batch_tokens == "auto" else config.micro_batch_tokens
    length = config.max_length or min(context, DEFAULT_LENGTH, most_tokens)
    if length > context:
        raise PQMError(f"max_length: {length} is more than the model's context of {context} tokens")
    if length > most_tokens:
        raise PQMError(f"max_length: a trajectory of {length} tokens does not fit micro_batch_tokens={most_tokens}")
    return length
