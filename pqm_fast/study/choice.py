"""Chooses the learning rate and the aggregator at a cell of the grid."""

from collections.abc import Mapping

from pqm_fast.study.trial_result import Result


def choose(results: Mapping[float, Result]) -> tuple[float, str] | None:
    """(learning rate, aggregator) with the best Best-of-N on the tuning pool; None if every rate diverged.

    A tie goes to the lower rate, then to the aggregator that was named first.

    Args:
        results: by learning rate, all with the first seed.
    """
    options = [
        (best_of_n, rate, aggregator)
        for rate, result in results.items()
        if result["diverged"] is None
        for aggregator, best_of_n in result["tuning"].items()
    ]
    if not options:
        return None
    _, rate, aggregator = max(options, key=lambda option: (option[0], -option[1]))  # the first one of several maxima
    return rate, aggregator
