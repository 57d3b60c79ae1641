"""The op of pqm-fast, for any trainer: step scores and ranking losses straight from hidden states."""

from pqm_kernels.reference import LOSSES, trajectory_losses
from pqm_kernels.step_loss import StepLoss, step_loss

__all__ = ["LOSSES", "StepLoss", "step_loss", "trajectory_losses"]
