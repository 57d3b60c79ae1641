"""Scores as probabilities, before and after Platt scaling on other questions, and how good these are."""

from typing import Any

import numpy as np

from pqm_fast.evaluate.aggregate import log_sigmoid
from pqm_fast.evaluate.calibrate import ON_FOLDS, ON_OTHERS, cross
from pqm_fast.evaluate.platt import platt_scaling
from pqm_fast.evaluate.step_curves import reliability_bins

EQUAL_BINS = 15


def probability_errors(logit: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """How far sigmoid(logit) is from the labels as a probability that an item is correct; 0 is best for all.

    Args:
        logit: [items], at least one.
        label: [items] in [0, 1].

    Returns:
        `brier`: the mean of (p - label)^2; `log_loss`: the mean of -label log p - (1 - label) log(1 - p); `ece`: the
        expected calibration error, the mean over items of |mean p - mean label| in their bin (Naeini et al. 2015). The
        bins are 15 of equal mass (Nixon et al. 2019, arXiv 1904.01685): items sorted by p, cut into runs whose sizes
        differ by at most 1. Items of one p share their mean label, so that their order does not matter.
    """
    p = np.exp(log_sigmoid(logit))
    log_loss = -(label * log_sigmoid(logit) + (1 - label) * log_sigmoid(-logit)).mean()
    _, group, size = np.unique(p, return_inverse=True, return_counts=True)
    shared_label = (np.bincount(group, label) / size)[group]
    order = np.argsort(p, kind="stable")
    bins = np.array_split((p - shared_label)[order], min(EQUAL_BINS, p.size))
    ece = sum(abs(float(gaps.sum())) for gaps in bins) / p.size
    return {"brier": float(((p - label) ** 2).mean()), "log_loss": float(log_loss), "ece": ece}


def cross_scaled(logit: np.ndarray, label: np.ndarray, folds: np.ndarray) -> dict[str, Any] | None:
    """Platt scaling for each fold of the questions, fitted on the other folds.

    Args:
        logit: [items] finite; sigmoid(logit) is the probability before scaling.
        label: [items] in [0, 1].
        folds: [items] the fold of each item's question (`deal`).

    Returns:
        `slope`, `offset`: one per fold; `calibrated_on` in words; `count`: the number of items; `before`, `after`: the
        results of `probability_errors`; `bins`: those of `reliability_bins` after scaling. None if four of the folds
        together have no correct or no wrong item.
    """
    lines = cross(folds, lambda other_folds: platt_scaling(logit[other_folds], label[other_folds]))
    return None if lines is None or not logit.size else _scaled(logit, label, lines, folds, ON_FOLDS)


def scaled_from(
    logit: np.ndarray, label: np.ndarray, other_logit: np.ndarray, other_label: np.ndarray
) -> dict[str, Any] | None:
    """The results of `cross_scaled`, with one Platt scaling from other questions; None if these have no correct or no
    wrong item, or if there are no items."""
    line = platt_scaling(other_logit, other_label)
    if line is None or not logit.size:
        return None
    return _scaled(logit, label, [line], np.zeros(logit.size, dtype=np.int64), ON_OTHERS)


def _scaled(
    logit: np.ndarray, label: np.ndarray, lines: list[tuple[float, float]], which: np.ndarray, calibrated_on: str
) -> dict[str, Any]:
    slope, offset = np.array(lines).T
    scaled_logit = slope[which] * logit + offset[which]
    return {
        "slope": slope.tolist(),
        "offset": offset.tolist(),
        "calibrated_on": calibrated_on,
        "count": int(logit.size),
        "before": probability_errors(logit, label),
        "after": probability_errors(scaled_logit, label),
        "bins": reliability_bins(scaled_logit, label),
    }
