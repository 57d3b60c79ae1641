"""The op of pqm-fast, for any trainer: step scores and ranking losses straight from hidden states."""

from pqm_kernels.adamw import AdamW
from pqm_kernels.by_row import StepsByRow, steps_by_row
from pqm_kernels.gather import gather_rows
from pqm_kernels.reference import LOSSES, trajectory_losses
from pqm_kernels.step_loss import StepLoss, step_loss

__all__ = ["LOSSES", "AdamW", "StepLoss", "StepsByRow", "gather_rows", "step_loss", "steps_by_row", "trajectory_losses"]
