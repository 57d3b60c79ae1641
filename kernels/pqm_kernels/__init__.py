"""The fused op of pqm-fast, for any trainer: from hidden states to step scores and the losses of PRMs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqm_kernels.adamw.optimizer import AdamW
    from pqm_kernels.fused_step_loss.api import StepLoss, step_loss
    from pqm_kernels.fused_step_loss.reference import trajectory_losses
    from pqm_kernels.fused_step_loss.reference_questions import question_losses
    from pqm_kernels.gather.op import gather_rows
    from pqm_kernels.losses import LOSSES
    from pqm_kernels.row_index import StepsByRow, steps_by_row
    from pqm_kernels.sibling_index import Siblings, siblings

__all__ = [
    "LOSSES",
    "AdamW",
    "Siblings",
    "StepLoss",
    "StepsByRow",
    "gather_rows",
    "question_losses",
    "siblings",
    "step_loss",
    "steps_by_row",
    "trajectory_losses",
]

# A name is imported when it is first used, so that the table of losses can be read without torch. No module in this
# folder may have the name of a function listed here: importing the module would replace the function.
_MODULE_OF = {
    "LOSSES": "losses",
    "AdamW": "adamw.optimizer",
    "Siblings": "sibling_index",
    "StepLoss": "fused_step_loss.api",
    "StepsByRow": "row_index",
    "gather_rows": "gather.op",
    "question_losses": "fused_step_loss.reference_questions",
    "siblings": "sibling_index",
    "step_loss": "fused_step_loss.api",
    "steps_by_row": "row_index",
    "trajectory_losses": "fused_step_loss.reference",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pqm_kernels' has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"pqm_kernels.{_MODULE_OF[name]}"), name)
    return globals()[name]
