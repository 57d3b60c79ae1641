"""What training minimises: one loss, or two of which the second compares the solutions of a question."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pqm_kernels import StepLoss
from pqm_kernels.losses import default_normalizer

from pqm_fast.data.encode import Template
from pqm_fast.data.pack import PackedBatch
from pqm_fast.model.attention import BatchPlan
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.label_noise import HIGHEST, estimate_noise
from pqm_fast.train.split import Split

MOST_SOLUTIONS = 100_000  # whose labels tell the rates of wrong labels, far more precisely than training needs


@dataclass(frozen=True)
class Objective:
    """What a step minimises: `loss`, and `compare_weight` times the loss `compare`, with the numbers in their formulas.
    Gradients are clipped to a norm of `clip` (0: never)."""

    loss: str = "rank"
    zeta: float = 4.0
    clip: float = 1.0
    compare: str | None = None
    compare_weight: float = 1.0
    temperature: float = 1.0
    noise: tuple[float, float] = (0.1, 0.1)

    def __call__(self, model: StepQModel, batch: PackedBatch, plan: BatchPlan | None, normalizer: float) -> StepLoss:
        """The loss, divided by `normalizer`, and the Q-values of a batch on the host."""
        return model(
            batch,
            plan,
            loss=self.loss,
            zeta=self.zeta,
            compare=self.compare,
            compare_weight=self.compare_weight,
            temperature=self.temperature,
            noise=self.noise,
            normalizer=normalizer,
        )

    def __str__(self) -> str:
        return self.loss if self.compare is None else f"{self.loss} + {self.compare_weight:g} x {self.compare}"

    def recipe(self, template: Template) -> Recipe:
        """How a checkpoint that was trained with this objective was made."""
        return Recipe(template, self.loss, self.zeta, self.compare, self.compare_weight, self.temperature, self.noise)

    def normalizer(self, steps: int, trajectories: int) -> float:
        """What the loss of so many steps and trajectories is divided by: as `loss` says, but at least 1."""
        return float(default_normalizer(self.loss, steps, trajectories))

    def normalizer_of(self, batches: Sequence[PackedBatch]) -> float:
        """`normalizer` for these batches together."""
        return self.normalizer(sum(b.num_steps for b in batches), sum(b.num_trajectories for b in batches))


def make_objective(config: TrainConfig, training: Split, notes: list[str]) -> Objective:
    """The objective that the options ask for. `notes` gets the rates of wrong labels if they are estimated."""
    noise = Objective.noise if config.noise == "auto" else config.noise
    if config.noise == "auto" and any(loss.uses_noise for loss in config.losses.values()):
        noise = _estimated_noise(config, training, notes)
    return Objective(
        loss=config.loss,
        zeta=config.zeta,
        clip=config.clip,
        compare=None if config.compare == "none" else config.compare,
        compare_weight=config.compare_weight,
        temperature=config.temperature,
        noise=noise,
    )


def _estimated_noise(config: TrainConfig, training: Split, notes: list[str]) -> tuple[float, float]:
    """The rates of wrong labels in the training data, the same whenever the run is resumed."""
    indices = training.indices[np.linspace(0, len(training) - 1, min(MOST_SOLUTIONS, len(training)), dtype=np.int64)]
    labels = [own[~np.isnan(own)] for own in (training.trajectory(i).labels for i in indices)]
    estimate = estimate_noise(labels)
    notes.append(
        f"noise, estimated from the labels of {len(indices):,} solutions: {estimate.before:.2%} of the steps before "
        f"the first error are labelled wrong, {estimate.after:.2%} of those from there on correct"
    )
    both_kinds = any(own.min(initial=1) < 0.5 <= own.max(initial=0) for own in labels)
    goes_on = any((own[:-1] < 0.5).any() for own in labels)  # behind a step that is labelled wrong
    if not (both_kinds and goes_on) or max(estimate.before, estimate.after) >= HIGHEST:
        notes.append(
            f"warning: {', '.join(config.data)}: the labels do not tell these rates, which need solutions with correct "
            "and wrong steps and labels beyond the first wrong one; give them with --noise"
        )
    return estimate.before, estimate.after
