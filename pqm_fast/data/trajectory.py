"""One solution as tokens, with its labels."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One encoded trajectory with its labels: input_ids [L], step_tokens [K], labels [K] float32 (NaN: none)."""

    input_ids: np.ndarray
    step_tokens: np.ndarray
    labels: np.ndarray
