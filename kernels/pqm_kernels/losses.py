"""The losses that the op computes, as a table that needs no torch, so that command-line options can read it.

The name of a loss has its formula in plain PyTorch in fused_step_loss/reference.py, its GPU code in
fused_step_loss/device_losses.py, and what a trainer has to know about it here.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Loss:
    """The properties of a loss that trainers and reports have to know."""

    formula: str
    """The loss of one trajectory and its source, in one line."""
    soft_labels: bool = False
    """Takes any label in [0, 1]; the others take 0 and 1 only."""
    normalised_by: Literal["trajectories", "steps"] = "trajectories"
    """A batch divides the sum over its trajectories by the number of these."""
    uses_zeta: bool = False
    """Has the margin zeta between correct and wrong steps; the others ignore it."""
    has_flat_floor: bool = False
    """Cannot fall below log(|C|!) / (|C| + [W]) while all correct steps have one score (docs/method.md)."""
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
    ),
    "mse": Loss(
        formula="sum: (sigmoid(q_t) - y_t)^2",
        soft_labels=True,
        normalised_by="steps",
    ),
    "orm": Loss(
        formula="binary cross entropy of sigmoid(q_T) and 'no step is wrong'",
        last_step_only=True,
    ),
}


def default_normalizer(loss: str, num_steps: int, num_trajectories: int) -> int:
    """The number that a batch divides the sum of its trajectory losses by: steps or trajectories, but at least 1."""
    return max(num_steps if LOSSES[loss].normalised_by == "steps" else num_trajectories, 1)
