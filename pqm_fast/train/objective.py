"""What training minimises: one loss, or two of which the second compares the solutions of a question."""

from collections.abc import Iterable
from dataclasses import dataclass

from pqm_kernels import LOSSES, StepLoss

from pqm_fast.data.pack import PackedBatch
from pqm_fast.model.attention import BatchPlan
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.label_noise import estimate_noise
from pqm_fast.train.split import Split


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

    def normalizer(self, batches: Iterable[PackedBatch]) -> float:
        """What the loss of these batches together is divided by: their steps or trajectories, as `loss` says, but at
        least 1."""
        by_steps = LOSSES[self.loss].normalised_by == "steps"
        return float(max(1, sum(b.num_steps if by_steps else b.num_trajectories for b in batches)))


def make_objective(config: TrainConfig, training: Split, notes: list[str]) -> Objective:
    """The objective that the options ask for. `notes` gets the rates of wrong labels if they are estimated."""
    noise = config.noise
    if noise == "auto":
        noise = Objective.noise
        if any(loss.uses_noise for loss in config.losses.values()):
            noise = estimate_noise(training.labels(), training.dataset.columns)
            notes.append(f"noise")
    return Objective(
        loss=config.loss,
        zeta=config.zeta,
        clip=config.clip,
        compare=None if config.compare == "none" else config.compare,
        compare_weight=config.compare_weight,
        temperature=config.temperature,
        noise=noise,
    )
