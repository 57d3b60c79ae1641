"""ProcessBench: does the model find the first wrong step, and leave correct solutions alone?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.calibrate import candidates, cross, deal, right_between, share_inside
from pqm_fast.evaluate.estimate import Z
from pqm_fast.evaluate.step_metrics import Trajectories, flatten


def processbench(scores: Trajectories, first_errors: Sequence[int], threshold: float = 0.0) -> dict[str, Any]:
    """The figures of ProcessBench (arXiv 2412.06559).

    The prediction for a solution is its first step with q < `threshold`, or -1 if there is none. It must equal the
    label exactly. A step without a score (None: it was cut off) is never predicted wrong.

    Args:
        scores: Q-values of each solution, one per step.
        first_errors: 0-based index of each solution's first wrong step, -1 for a correct solution.
        threshold: fixed beforehand, never picked on the data it is scored on.

    Returns:
        `accuracy_on_erroneous`, `accuracy_on_correct`, their harmonic mean `f1` with its 95% interval `f1_low` and
        `f1_high` (each None where undefined), and the number of `erroneous` and `correct` solutions.

    Raises:
        PQMError: a label outside -1 .. steps-1, different lengths, or a score that is NaN.
    """
    _check(scores, first_errors)
    return _figures(_hits(scores, first_errors, [threshold] * len(scores)), first_errors)


def calibrate_threshold(scores: Trajectories, first_errors: Sequence[int]) -> float:
    """The threshold with the highest F1, for use on other data. Exact, in n log n time.

    A solution is judged right for the thresholds in one interval (lo, hi] between its scores, so F1 changes only at the
    ends of these intervals. The result is the middle of the best stretch, the lowest one if there are several.

    Raises:
        PQMError: as `processbench`; also if there are no erroneous or no correct solutions, where F1 is undefined.
    """
    _check(scores, first_errors)
    erroneous = np.array(first_errors) >= 0
    threshold = _best(_bounds(scores, first_errors), erroneous)
    if threshold is None:
        raise PQMError(
            f"a threshold needs erroneous and correct solutions, found {erroneous.sum()} and {(~erroneous).sum()}"
        )
    return threshold


def cross_calibrated(
    scores: Trajectories, first_errors: Sequence[int], questions: Sequence[str]
) -> dict[str, Any] | None:
    """`processbench` where the threshold of each solution comes from the other questions.

    A hash of their text deals the questions into five folds, whatever their order. Each fold is judged with the
    threshold that is best on the other four.

    Returns:
        The results of `processbench`, and `thresholds`, one per fold. None if four of the folds together have no
        erroneous or no correct solutions.
    """
    _check(scores, first_errors)
    folds, erroneous, bounds = deal(questions), np.array(first_errors) >= 0, _bounds(scores, first_errors)
    thresholds = cross(folds, lambda other_folds: _best(bounds[other_folds], erroneous[other_folds]))
    if thresholds is None:
        return None
    hits = _hits(scores, first_errors, [thresholds[fold] for fold in folds])
    return {**_figures(hits, first_errors), "thresholds": thresholds}


def _bounds(scores: Trajectories, first_errors: Sequence[int]) -> np.ndarray:
    """[solutions, 2] the interval (lo, hi] of the thresholds that judge each solution right."""
    q, _, solution = flatten(scores, scores)
    starts = np.searchsorted(solution, np.arange(len(scores)))
    label = np.array(first_errors, dtype=np.int64)
    return right_between(q, ~np.isnan(q), solution, np.where(label < 0, -1, starts + label))


def _best(bounds: np.ndarray, erroneous: np.ndarray) -> float | None:
    """The threshold with the highest F1; None without erroneous or without correct solutions, where F1 is undefined."""
    if erroneous.all() or not erroneous.any():
        return None
    thresholds = candidates(bounds)
    a, c = (share_inside(bounds[kind], thresholds) for kind in (erroneous, ~erroneous))
    return float(thresholds[np.argmax(2 * a * c / np.maximum(a + c, np.finfo(float).tiny))])


def _check(scores: Trajectories, first_errors: Sequence[int]) -> None:
    if len(scores) != len(first_errors):
        raise PQMError(f"{len(scores)} solutions but {len(first_errors)} first-error labels: pass one for each")
    for i, (steps, label) in enumerate(zip(scores, first_errors, strict=True)):
        if not -1 <= label < len(steps):
            raise PQMError(f"solution {i}: first error {label}, expected -1 .. {len(steps) - 1}")
        if any(q is not None and q != q for q in steps):
            raise PQMError(f"solution {i}: a step score is NaN; check the model's output")


def _hits(scores: Trajectories, first_errors: Sequence[int], thresholds: Sequence[float]) -> list[bool]:
    predicted = (
        next((t for t, q in enumerate(steps) if q is not None and q < threshold), -1)
        for steps, threshold in zip(scores, thresholds, strict=True)
    )
    return [guess == label for guess, label in zip(predicted, first_errors, strict=True)]


def _figures(hits: list[bool], first_errors: Sequence[int]) -> dict[str, Any]:
    on_erroneous = [hit for hit, first in zip(hits, first_errors, strict=True) if first >= 0]
    on_correct = [hit for hit, first in zip(hits, first_errors, strict=True) if first < 0]
    a, c = (sum(part) / len(part) if part else None for part in (on_erroneous, on_correct))
    f1 = low = high = None
    if a is not None and c is not None:
        f1 = 2 * a * c / (a + c) if a + c else 0.0
        if a and c:  # the delta method: the two accuracies come from different solutions
            by_a, by_c = 2 * c * c / (a + c) ** 2, 2 * a * a / (a + c) ** 2
            variance = by_a**2 * a * (1 - a) / len(on_erroneous) + by_c**2 * c * (1 - c) / len(on_correct)
            low, high = max(f1 - Z * variance**0.5, 0.0), min(f1 + Z * variance**0.5, 1.0)
    return {
        "accuracy_on_erroneous": a,
        "accuracy_on_correct": c,
        "f1": f1,
        "f1_low": low,
        "f1_high": high,
        "erroneous": len(on_erroneous),
        "correct": len(on_correct),
    }
