"""Whether step labels tell right from wrong at all."""

import numpy as np

RARE = 0.01  # a class with a smaller share of the labels is too rare to learn or to measure


def one_sided(labels: np.ndarray, threshold: float = 0.5) -> str | None:
    """What to say where (nearly) all labels say the same; None where both classes are there.

    `labels` [S], NaN for none: correct from `threshold` on.
    """
    known = labels[~np.isnan(labels)]
    wrong = int((known < threshold).sum())
    total = known.size
    if not total or min(wrong, total - wrong) >= RARE * total:
        return None
    if wrong in (0, total):
        found = f"all {total:,} step labels are {'correct' if wrong == 0 else 'wrong'}"
    else:
        rare = "wrong" if wrong < total - wrong else "correct"
        found = f"only {min(wrong, total - wrong):,} of {total:,} step labels are {rare}"
    return (
        f"{found}: a model that gives every step one score looks right on them, so nothing can be told apart; "
        "add solutions of the other kind"
    )
