"""What a head trains on and what is held out, for the losses that heads train with."""

from dataclasses import dataclass, replace

import numpy as np

from pqm_fast.common.combination import Combination
from pqm_fast.data.questions import split_by_question
from pqm_fast.errors import PQMError
from pqm_fast.probe.frozen import Probed
from pqm_fast.probe.options import ProbeConfig
from pqm_fast.train.comparisons import check_comparisons
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.split import Split, usable, without_questions_of


@dataclass(frozen=True)
class Sides:
    """The data sets with their states: one to train on, and another one to hold out, or the same."""

    training: Probed
    held_out: Probed


def training_config(config: ProbeConfig, combination: Combination) -> TrainConfig:
    """The options of a training with this loss on the same data."""
    return TrainConfig(
        model=config.model,
        data=config.data,
        out=config.out,
        loss=combination.loss,
        compare=combination.compare or "none",
        temperature=config.temperature,
        noise=config.noise,
        label_threshold=config.label_threshold,
        read=config.read,
        eval_data=config.eval_data,
        eval_fraction=config.eval_fraction,
        prefix_tree=True,
        seed=config.seeds[0],
    )


def needs_outcomes(config: ProbeConfig, combinations: list[Combination]) -> bool:
    """Whether any of the losses reads whether solutions are right."""
    return any(training_config(config, combination).needs_outcomes for combination in combinations)


def split(config: ProbeConfig, combination: Combination, sides: Sides, notes: list[str]) -> tuple[Split, Split]:
    """The trajectories to train on and to hold out, with no question on both sides.

    `notes` gets what was left out and why. Raises PQMError for data that the loss cannot use.
    """
    options = training_config(config, combination)
    training = _usable(sides.training, config.data, options, notes)
    names = ", ".join(config.data)
    if sides.held_out is not sides.training:
        held_out = _usable(sides.held_out, config.eval_data, options, notes)
        training = without_questions_of(held_out, training, notes)
    else:
        # of all questions, so that every loss holds out the same ones, whichever records it can use
        _, to_hold_out = split_by_question(training.dataset.question, config.eval_fraction, config.seeds[0])
        is_held_out = np.isin(training.indices, to_hold_out)
        training, held_out = (
            replace(training, indices=training.indices[is_held_out == side]) for side in (False, True)
        )
    for side, what in ((training, "to train on"), (held_out, "to hold out")):
        if not len(side):
            raise PQMError(f"{names}: no trajectory is left {what}; a probe needs two questions or more")
    check_comparisons(options, training, notes)
    return training, held_out


def _usable(probed: Probed, paths: tuple[str, ...], options: TrainConfig, notes: list[str]) -> Split:
    dataset = probed.dataset
    indices = np.arange(len(dataset))
    if options.reads_labels:
        indices = np.flatnonzero(dataset.labelled_steps())
        if len(indices) < len(dataset):
            notes.append(f"{len(dataset) - len(indices):,} trajectories without a label left out")
        if not len(indices):
            raise PQMError(f"{', '.join(paths)}: no step has a label, which the loss {options.loss} needs")
    return usable(dataset, indices, paths, options, notes)
