"""Measures how good a process reward model is: step metrics, ProcessBench, Best-of-N and votes, in plain numpy."""

from pqm_fast.evaluate.aggregate import aggregate
from pqm_fast.evaluate.best_of_n import best_of_n, mean_accuracy, pass_at_n
from pqm_fast.evaluate.error_types import by_type
from pqm_fast.evaluate.platt import platt_scaling
from pqm_fast.evaluate.pools import evaluate_pools
from pqm_fast.evaluate.positions import by_position
from pqm_fast.evaluate.prm_score import prm_score
from pqm_fast.evaluate.probabilities import cross_scaled, probability_errors, scaled_from
from pqm_fast.evaluate.processbench import calibrate_threshold, cross_calibrated, processbench
from pqm_fast.evaluate.step_curves import auroc_by_position, calibration
from pqm_fast.evaluate.step_metrics import flat_floor, step_metrics
from pqm_fast.evaluate.step_thresholds import StepThresholds, calibrated_metrics, cross_thresholds, thresholds_from
from pqm_fast.evaluate.steps import evaluate_steps
from pqm_fast.evaluate.table import table
from pqm_fast.evaluate.vote import majority_vote, self_consistency, weighted_vote

__all__ = [
    "StepThresholds",
    "aggregate",
    "auroc_by_position",
    "best_of_n",
    "by_position",
    "by_type",
    "calibrate_threshold",
    "calibrated_metrics",
    "calibration",
    "cross_calibrated",
    "cross_scaled",
    "cross_thresholds",
    "evaluate_pools",
    "evaluate_steps",
    "flat_floor",
    "majority_vote",
    "mean_accuracy",
    "pass_at_n",
    "platt_scaling",
    "prm_score",
    "probability_errors",
    "processbench",
    "scaled_from",
    "self_consistency",
    "step_metrics",
    "table",
    "thresholds_from",
    "weighted_vote",
]
