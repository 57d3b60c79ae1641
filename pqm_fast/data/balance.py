"""Checks that step labels include enough of both classes, correct and wrong."""

import numpy as np

RARE = 0.01  # a class with a smaller share of the labels is too rare to learn or to measure


def one_sided(labels: np.ndarray, threshold: float = 0.5) -> str | None:
    """A warning if (nearly) all labels are of one class; None if both classes occur.

    `labels` [S], NaN for a step without a label. A step is correct if its label is `threshold` or more.
    """
    known_labels = labels[~np.isnan(labels)]
    wrong = int((known_labels < threshold).sum())
    total = known_labels.size
    if not total or min(wrong, total - wrong) >= RARE * total:
        return None
    if wrong in (0, total):
        balance = f"all {total:,} step labels are {'correct' if wrong == 0 else 'wrong'}"
    else:
        rare = "wrong" if wrong < total - wrong else "correct"
        balance = f"only {min(wrong, total - wrong):,} of {total:,} step labels are {rare}"
    return (
        f"{balance}: a model that gives every step the same score looks right on them, and cannot be told from a good "
        "one; add solutions of the other kind"
    )
