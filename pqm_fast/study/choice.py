"""Chooses the learning rate, the weight of an added comparison and the aggregator at a cell of the grid."""

from collections.abc import Mapping

from pqm_fast.study.grid import Trial
from pqm_fast.study.trial_result import Result


def choose(results: Mapping[Trial, Result]) -> tuple[Trial, str] | None:
    """(trial, aggregator) with the best Best-of-N on the tuning pool; None if every trial diverged.

    A tie goes to the lower rate, then to the lower weight, then to the aggregator that was named first.

    Args:
        results: of the `tuning_trials` of one cell.
    """
    options = [
        (best_of_n, trial, aggregator)
        for trial, result in results.items()
        if result["diverged"] is None
        for aggregator, best_of_n in result["tuning"].items()
    ]
    if not options:
        return None

    def preference(option: tuple[float, Trial, str]) -> tuple[float, float, float]:
        best_of_n, trial, _ = option
        return best_of_n, -trial.learning_rate, -(trial.compare_weight or 0.0)

    _, trial, aggregator = max(options, key=preference)  # the first one of several maxima
    return trial, aggregator
