"""Trajectory: one solution as tokens, with its labels."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One encoded solution of L tokens and K steps."""

    input_ids: np.ndarray  # [L] integers
    step_tokens: np.ndarray  # [K] integers: the token at which the Q-value of each step is read
    labels: np.ndarray  # [K] float32, NaN for a step without a label
    outcome: float = math.nan
    """Whether the whole solution is right: 1 right, 0 wrong, or NaN if that is unknown. A number between them counts as
    right from 0.5 on."""
