"""pqm-fast: process reward models trained as process Q-value models (PQM), fast and exact."""

from typing import TYPE_CHECKING

from pqm_fast.common import lean_imports

if TYPE_CHECKING:
    from pqm_fast.model.step_q_model import StepQModel
    from pqm_fast.scoring.scorer import Scorer

__all__ = ["Scorer", "StepQModel"]

lean_imports.install()


def __getattr__(name: str):
    # imported on first use, so that `pqm-fast --help` and the readers do not load torch
    if name == "StepQModel":
        from pqm_fast.model.step_q_model import StepQModel

        return StepQModel
    if name == "Scorer":
        from pqm_fast.scoring.scorer import Scorer

        return Scorer
    raise AttributeError(f"module 'pqm_fast' has no attribute {name!r}")
