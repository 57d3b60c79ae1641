"""Jackknife pseudo-values: what each question adds to a figure that is not a mean over questions, such as an AUROC."""

from collections.abc import Callable

import numpy as np


def pseudo_values(group: np.ndarray, figure: Callable[[np.ndarray], float | None]) -> np.ndarray | None:
    """[groups] float64: for each group, G * figure(all) - (G - 1) * figure(all but the group) (Tukey, 1958), shifted so
    that their mean is figure(all).

    For a mean over groups these are the groups' own values. For a smooth figure their variance gives its interval. (The
    mean without the shift would be another, bias-corrected figure.)

    Args:
        group: [items] int64, the group of each item, from 0 to G - 1.
        figure: of the items where a mask [items] is set; None where it is undefined.

    Returns:
        None if the figure is undefined for all items, or without one of the groups.
    """
    count = int(group.max(initial=-1)) + 1
    whole = figure(np.ones(len(group), dtype=bool))
    without = [figure(group != g) for g in range(count)]
    if whole is None or None in without:
        return None
    values = (count - 1) * -np.array(without, dtype=np.float64)
    return whole + values - values.mean()


def numbered(names: list[str]) -> np.ndarray:
    """[names] int64: equal numbers for equal names, from 0 in the order in which they first appear."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
