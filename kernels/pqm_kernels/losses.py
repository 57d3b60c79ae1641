"""The losses that the op computes, as a table that needs no torch, so that command-line options can read it.

The name of a loss has its formula in plain PyTorch in fused_step_loss/reference.py, its GPU code in
fused_step_loss/device_losses.py, and what a trainer has to know about it here.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple


class LossOptions(NamedTuple):
    """The numbers in the formulas. Each loss reads those that its entry in `LOSSES` says."""

    zeta: float = 4.0
    """Margin between correct and wrong steps."""
    temperature: float = 1.0
    """Temperature of the soft minimum in listwise-softmin."""
    noise_before: float = 0.1
    """Probability that a step before the first error is labelled wrong."""
    noise_after: float = 0.1
    """Probability that a step from the first error on is labelled correct."""


@dataclass(frozen=True)
class Loss:
    """The properties of a loss that trainers and reports have to know."""

    formula: str
    """The loss of one trajectory, or of one question, and its source, in one line."""
    unit: Literal["trajectory", "question"] = "trajectory"
    """What the formula is about. A loss of a question compares its solutions; it can be added to a trajectory's."""
    soft_labels: bool = False
    """Takes any label in [0, 1]; the others take 0 and 1 only."""
    normalised_by: Literal["trajectories", "steps"] = "trajectories"
    """A batch divides the sum over its trajectories by the number of these."""
    uses_zeta: bool = False
    """Has the margin zeta between correct and wrong steps; the others ignore it."""
    uses_noise: bool = False
    """Reads the rates of wrong labels, `noise`."""
    uses_outcomes: bool = False
    """Reads whether each solution is right, not which of its steps are."""
    uses_siblings: bool = False
    """Compares steps that continue the same prefix, and so reads `parent`."""
    weighs_steps: bool = False
    """Takes a weight for each step."""
    has_flat_floor: bool = False
    """Cannot fall below log(|C|!) / (|C| + [W]) while all correct steps have one score (docs/explanation/method.md)."""
    last_step_only: bool = False
    """Trains the score of the last step alone: a trajectory whose end was cut off has nothing to train."""
    chained: bool = False
    """Its Triton kernel keeps a scratch value for each step."""


LOSSES: dict[str, Loss] = {
    "rank": Loss(
        formula="mean: log(1 + sum_{c'<=c} e^q_c' + N) - q_c, log(1 + N) (PQM Eq. 10)",
        uses_zeta=True,
        has_flat_floor=True,
        chained=True,
    ),
    "rank-theory": Loss(
        formula="mean: rank's terms, log sum_{w'>=w} e^q_w' - q_w (PQM Eq. 9)",
        uses_zeta=True,
        chained=True,
    ),
    "rank-first-error": Loss(
        formula="rank with N = e^q of the first wrong step (PQM Eq. 12)",
        has_flat_floor=True,
        chained=True,
    ),
    "pairwise": Loss(
        formula="mean: softplus(lower + margin - higher), all pairs (PQM's theorem)",
        uses_zeta=True,
    ),
    "crm": Loss(
        formula="-log P(first wrong step, outcome), sigmoid(q_t) = P(t is right) (CRM)",
    ),
    "bce": Loss(
        formula="sum: binary cross entropy of sigmoid(q_t) and y_t",
        soft_labels=True,
        normalised_by="steps",
        weighs_steps=True,
    ),
    "mse": Loss(
        formula="sum: (sigmoid(q_t) - y_t)^2",
        soft_labels=True,
        normalised_by="steps",
        weighs_steps=True,
    ),
    "orm": Loss(
        formula="binary cross entropy of sigmoid(q_T) and 'no step is wrong'",
        last_step_only=True,
    ),
    "first-error": Loss(
        formula="sum: binary cross entropy up to and including the first wrong step",
        normalised_by="steps",
        weighs_steps=True,
    ),
    "first-error-noisy": Loss(
        formula="-log P(labels): the place of the first error is latent, labels are wrong with known rates",
        soft_labels=True,
        normalised_by="steps",
        uses_noise=True,
        chained=True,
    ),
    "sibling": Loss(
        formula="sum: softplus(q_wrong - q_correct), steps behind one prefix (PRISM's pairs, over trees)",
        unit="question",
        normalised_by="steps",
        uses_siblings=True,
        weighs_steps=True,
    ),
    "group-rank": Loss(
        formula="rank with N over the wrong steps of all solutions of the question",
        unit="question",
        uses_zeta=True,
        chained=True,
    ),
    "group-contrastive": Loss(
        formula="group-rank without the order of the correct steps: log(1 + e^q_c + N) - q_c, log(1 + N)",
        unit="question",
        uses_zeta=True,
    ),
    "listwise": Loss(
        formula="sum: log(1 + sum_w e^(s_w - s_r)) over right solutions r, s = sum of log sigmoid(q)",
        unit="question",
        uses_outcomes=True,
    ),
    "listwise-softmin": Loss(
        formula="listwise with s = the soft minimum of q",
        unit="question",
        uses_outcomes=True,
    ),
    "listwise-mean": Loss(
        formula="listwise with s = the mean of q",
        unit="question",
        uses_outcomes=True,
    ),
}


def default_normalizer(loss: str, num_steps: int, num_trajectories: int) -> int:
    """The number that a batch divides the sum of its trajectory losses by: steps or trajectories, but at least 1."""
    return max(num_steps if LOSSES[loss].normalised_by == "steps" else num_trajectories, 1)


def split_units(loss: str, compare: str | None) -> tuple[str | None, str | None]:
    """(loss of trajectories, loss of questions) that `loss` and `compare` of `step_loss` amount to."""
    return (None, loss) if LOSSES[loss].unit == "question" else (loss, compare)
