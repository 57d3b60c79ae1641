"""Groups trajectories by question, and splits them into two sets without dividing a question."""

import hashlib

import numpy as np


def question_number(prompt: str) -> int:
    """A 64-bit number that is equal for equal questions; differences in white space do not count."""
    text = " ".join(prompt.split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def group_by_question(question: np.ndarray) -> list[np.ndarray]:
    """Positions in `question` [N], grouped by equal numbers. A group keeps the order of its positions."""
    order = np.argsort(question, kind="stable")
    cuts = np.flatnonzero(np.diff(question[order])) + 1
    return np.split(order, cuts) if len(order) else []


def split_by_question(question: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of (training, held-out) trajectories, with all trajectories of a question on one side.

    `question` [N] has the question number of each trajectory, and `fraction` is the share of questions to hold out. At
    least one question is held out if `fraction` is positive and there are two or more questions.
    """
    unique = np.unique(question)
    if fraction <= 0 or len(unique) < 2:
        return np.arange(len(question)), np.arange(0)
    count = min(max(1, round(fraction * len(unique))), len(unique) - 1)
    held_out = np.random.default_rng([seed, 1]).permutation(unique)[:count]
    mask = np.isin(question, held_out)
    return np.flatnonzero(~mask), np.flatnonzero(mask)
