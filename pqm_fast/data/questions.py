"""Which trajectories answer the same question, and a split that keeps them together."""

import hashlib

import numpy as np


def question_number(prompt: str) -> int:
    """The same number for the same question, whatever its white space."""
    text = " ".join(prompt.split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def split_by_question(question: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of (training, held-out) trajectories; a question is on one side only. At least one question is held
    out if `fraction` is positive and there are two or more."""
    unique = np.unique(question)
    if fraction <= 0 or len(unique) < 2:
        return np.arange(len(question)), np.arange(0)
    count = min(max(1, round(fraction * len(unique))), len(unique) - 1)
    held_out = np.random.default_rng([seed, 1]).permutation(unique)[:count]
    mask = np.isin(question, held_out)
    return np.flatnonzero(~mask), np.flatnonzero(mask)
