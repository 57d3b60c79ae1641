"""What a process reward model is worth: step metrics, ProcessBench and Best-of-N, in plain numpy."""

from pqm_fast.evaluate.aggregate import aggregate
from pqm_fast.evaluate.best_of_n import best_of_n, majority_vote, mean_accuracy, pass_at_n
from pqm_fast.evaluate.processbench import processbench
from pqm_fast.evaluate.step_metrics import flat_floor, step_metrics
from pqm_fast.evaluate.summary import evaluate_pools, evaluate_steps, table

__all__ = [
    "aggregate",
    "best_of_n",
    "evaluate_pools",
    "evaluate_steps",
    "flat_floor",
    "majority_vote",
    "mean_accuracy",
    "pass_at_n",
    "processbench",
    "step_metrics",
    "table",
]
