"""The op of pqm-fast, for any trainer: step scores and ranking losses straight from hidden states."""

from pqm_kernels.adamw.optimizer import AdamW
from pqm_kernels.gather.op import gather_rows
from pqm_kernels.row_index import StepsByRow, steps_by_row
from pqm_kernels.step_loss.api import StepLoss, step_loss
from pqm_kernels.step_loss.reference import LOSSES, trajectory_losses

__all__ = ["LOSSES", "AdamW", "StepLoss", "StepsByRow", "gather_rows", "step_loss", "steps_by_row", "trajectory_losses"]
