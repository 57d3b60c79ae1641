"""`work`, the float32 buffer that the forward kernel fills and the backward reads."""

from pqm_kernels.losses import LOSSES, split_units


def work_size(num_steps: int, num_trajectories: int, has_norm: bool, loss: str, compare: str | None) -> int:
    """Elements of `work`, in this order, for S steps and B trajectories:

    - [S] the gradient of the loss by the scores;
    - with a norm, [S] score - bias and [S] 1 / rms;
    - [B] the losses of the trajectories;
    - for losses that use outcomes, [B] scores, [B] their rests and [B] outcomes of the solutions;
    - for chained losses, [S] scratch values.

    The backward needs the first two.
    """
    parts = [LOSSES[name] for name in split_units(loss, compare) if name is not None]
    chained, outcomes = any(part.chained for part in parts), any(part.uses_outcomes for part in parts)
    return (1 + 2 * has_norm + chained) * num_steps + (1 + 3 * outcomes) * num_trajectories
