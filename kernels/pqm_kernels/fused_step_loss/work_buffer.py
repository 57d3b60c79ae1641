"""`work`, the float32 buffer that the forward kernel fills and the backward reads."""

from pqm_kernels.losses import LOSSES


def work_size(num_steps: int, num_trajectories: int, has_norm: bool, loss: str) -> int:
    """Elements of `work`, in this order, for S steps and B trajectories:

    - [S] the gradient of the loss by the scores;
    - with a norm, [S] score - bias and [S] 1 / rms;
    - [B] the losses of the trajectories;
    - for chained losses, [S] scratch values.

    The backward needs the first two.
    """
    return (1 + 2 * has_norm + LOSSES[loss].chained) * num_steps + num_trajectories
