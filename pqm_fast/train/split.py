"""The trajectories that a run trains on, and those that it holds out for evaluation."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from pqm_kernels import LOSSES

from pqm_fast.data.balance import one_sided
from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.dataset import TrajectoryDataset
from pqm_fast.data.encode import Encoder
from pqm_fast.data.pack import PackedBatch, pack
from pqm_fast.data.questions import split_by_question
from pqm_fast.data.token_cache import load_dataset
from pqm_fast.data.tokenise import Wanted
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.outcomes import outcome
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.exclude import read_excluded, without_excluded
from pqm_fast.train.outcomes import known_outcomes, with_outcome


@dataclass(frozen=True)
class Split:
    """Some trajectories of a data set, with the labels as the loss takes them."""

    dataset: TrajectoryDataset
    indices: np.ndarray
    """[N] int64, the numbers of the trajectories in `dataset`."""
    label_threshold: float | None
    """Soft labels become 1 from this value on, and 0 below. None: labels stay as they are."""
    prefix_tree: bool
    """Compute what the trajectories of a question share once."""
    whole_questions: bool = False
    """Keep the trajectories of a question in one batch, because the loss compares them."""
    every_step: bool = False
    """List steps without a label too, because the loss does not read labels."""
    outcomes: np.ndarray | None = None
    """[trajectories of `dataset`] float32: 1 right, 0 wrong, NaN unknown; None if no loss reads outcomes."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def num_questions(self) -> int:
        return len(np.unique(self.dataset.question[self.indices]))

    @property
    def num_cut(self) -> int:
        """How many of the trajectories lost their last steps, because they were too long."""
        return int((self.dataset.steps_cut[self.indices] > 0).sum())

    def trajectory(self, index: int) -> Trajectory:
        """Trajectory `index` of the data set."""
        trajectory = self.dataset[index]
        if self.outcomes is not None:
            trajectory = replace(trajectory, outcome=float(self.outcomes[index]))
        if self.label_threshold is None:
            return trajectory
        labels = trajectory.labels
        hard = np.where(np.isnan(labels), np.nan, labels >= self.label_threshold)
        return replace(trajectory, labels=hard.astype(np.float32))

    def units(self, indices: np.ndarray, budget: int) -> PackingUnits:
        """The trajectories `indices` in units for batches of `budget` tokens."""
        if not (self.prefix_tree or self.whole_questions):
            return PackingUnits.single(indices, self.dataset.lengths[indices])
        question = self.dataset.question[indices]
        return PackingUnits.questions(
            indices, question, lambda i: self.dataset[i].input_ids, budget, share=self.prefix_tree
        )

    def tree_ratio(self, sample: int = 4096) -> float:
        """The tokens of a question's trajectories, divided by the tokens to compute: the value that 19 of 20 questions
        do not exceed, in a sample of trajectories. It is 1 without prefix trees."""
        if not self.prefix_tree:
            return 1.0
        sampled = self.indices[np.argsort(self.dataset.question[self.indices], kind="stable")[:sample]]
        units = self.units(sampled, int(self.dataset.lengths[sampled].sum()))
        totals = np.add.reduceat(self.dataset.lengths[units.members], np.append(0, units.ends[:-1]))
        return float(np.quantile(totals / units.sizes, 0.95))

    def pack(self, members: np.ndarray, pad_to: int | None = None) -> PackedBatch:
        """One batch of the trajectories `members` [B], padded to `pad_to` tokens.

        Without any, it is a batch that adds nothing to a loss: the shortest trajectory, none of whose steps is listed.
        A rank that has nothing to compute takes part in a round with it.
        """
        pairs = [(int(i), self.trajectory(i)) for i in members]
        if idle := not pairs:
            members = self.indices[[np.argmin(self.dataset.lengths[self.indices])]]
            shortest = self.dataset[int(members[0])]
            no_labels = np.full_like(shortest.labels, np.nan)
            pairs = [(int(members[0]), replace(shortest, labels=no_labels, outcome=math.nan))]
        question = self.dataset.question[members] if self.prefix_tree or self.whole_questions else None
        return pack(
            pairs,
            question=question,
            share=self.prefix_tree,
            compare=self.whole_questions,
            pad_to=pad_to,
            labelled_only=idle or not self.every_step,
        )

    @cached_property
    def listed_steps(self) -> np.ndarray:
        """The steps of each trajectory of `dataset` that a batch lists, [trajectories] int64."""
        if self.every_step:
            return np.diff(self.dataset.columns["steps_end"], prepend=0)
        return self.dataset.labelled_steps()

    def counts(self, members: np.ndarray) -> tuple[int, int]:
        """(listed steps, trajectories) of the trajectories `members`: what a loss over all of them is divided by."""
        return int(self.listed_steps[members].sum()), len(members)


def training_and_held_out(config: TrainConfig, encoder: Encoder, notes: list[str]) -> tuple[Split, Split]:
    """Loads the data and divides it so that no question is on both sides.

    `notes` gets what was left out and why. Raises PQMError for data that the loss cannot use, or if nothing is left to
    train on.
    """
    loaded = _load(config.data, config, encoder, notes)
    if config.exclude is not None:
        ids = read_excluded(config.exclude)
        kept = without_excluded(loaded.dataset, loaded.indices, ids, config.exclude, notes)
        loaded = replace(loaded, indices=kept)
    if config.eval_data:
        held_out = _load(config.eval_data, config, encoder, notes)
        training = without_questions_of(held_out, loaded, notes)
    else:
        question = loaded.dataset.question[loaded.indices]
        to_train, to_hold_out = split_by_question(question, config.eval_fraction, config.seed)
        training = replace(loaded, indices=loaded.indices[to_train])
        held_out = replace(loaded, indices=loaded.indices[to_hold_out])
    if not len(training):
        raise PQMError(f"{', '.join(config.data)}: no trajectory is left to train on")
    return training, held_out


def without_questions_of(held_out: Split, training: Split, notes: list[str]) -> Split:
    """`training` without the questions that the held-out data has. `notes` gets how many trajectories are left out."""
    shared = np.isin(training.dataset.question[training.indices], held_out.dataset.question)
    if shared.any():
        notes.append(f"{shared.sum():,} training trajectories left out: their questions are in the held-out data")
    return replace(training, indices=training.indices[~shared])


def _load(paths: tuple[str, ...], config: TrainConfig, encoder: Encoder, notes: list[str]) -> Split:
    """All trajectories of `paths` that the loss can use."""
    wanted = Wanted(outcome if config.needs_outcomes else None, labels=config.reads_labels)
    dataset = load_dataset(paths, config.read, encoder, config.cache_dir, wanted)
    notes += dataset.notes
    return usable(dataset, np.arange(len(dataset)), paths, config, notes)


def usable(
    dataset: TrajectoryDataset, indices: np.ndarray, paths: tuple[str, ...], config: TrainConfig, notes: list[str]
) -> Split:
    """The trajectories among `indices` that the loss can use; `paths` names the data. `notes` gets what was left out
    and why. Raises PQMError for labels that the loss does not take."""
    if LOSSES[config.loss].last_step_only and (cut := dataset.steps_cut[indices] > 0).any():
        notes.append(f"{cut.sum():,} trajectories left out: {config.loss} needs the last step, and theirs was cut off")
        indices = indices[~cut]
    outcomes = None
    if config.needs_outcomes:
        outcomes = known_outcomes(dataset, config.label_threshold)
        if not config.reads_labels:
            indices = np.intersect1d(indices, with_outcome(dataset, outcomes, paths, config, notes))
    if config.reads_labels:
        _check_labels(dataset, paths, config, notes)
    return Split(
        dataset=dataset,
        indices=indices,
        label_threshold=config.label_threshold,
        prefix_tree=config.prefix_tree,
        whole_questions=config.whole_questions,
        every_step=not config.reads_labels,
        outcomes=outcomes,
    )


def _check_labels(dataset: TrajectoryDataset, paths: tuple[str, ...], config: TrainConfig, notes: list[str]) -> None:
    """Raises PQMError for a label between 0 and 1 that a loss does not take. `notes` gets a warning if nearly all
    labels are equal."""
    labels = dataset.columns["labels"]
    if warning := one_sided(labels, config.label_threshold or 0.5):
        notes.append(f"warning: {', '.join(paths)}: {warning}")
    hard = [name for name, loss in config.losses.items() if not (loss.soft_labels or loss.uses_outcomes)]
    if hard and config.label_threshold is None and len(wrong := np.flatnonzero((labels > 0) & (labels < 1))):
        record = dataset.name(dataset.trajectory_of_step(int(wrong[0])))
        raise PQMError(
            f"{', '.join(paths)}: record {record}: label {labels[wrong[0]]:g} is neither 0 nor 1, which the loss "
            f"{hard[0]} needs ({len(wrong):,} such labels); give --label-threshold 0.5, or a loss for soft labels "
            f"({', '.join(name for name, loss in LOSSES.items() if loss.soft_labels)})"
        )
