"""Checks the scores of every way before it is timed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pqm_benchmarks.shared.workload import Questions, flat
from pqm_benchmarks.train.ways.models import random_model
from pqm_benchmarks.train.ways.ours import HEAD
from pqm_fast.errors import PQMError

SOLUTIONS = 32  # compared with scores of higher precision, spread over all questions
TIMES = 2.0  # a way may have this many times the error of transformers' own model at the same precision
NEGLIGIBLE = 1e-5  # an error that is always allowed: norms of transformers are float32 in any model


@dataclass
class Expected:
    """The expected scores. Errors are relative, in the Euclidean norm over all steps of several solutions."""

    sample: list[int]
    """Indices of solutions, spread over all questions."""
    exact: list[np.ndarray]
    """Their scores by transformers' own model with the same weights at a higher precision, one solution at a time."""
    error: float
    """Error of transformers' own model at the precision that is timed, one solution at a time."""
    first: list[np.ndarray] | None = None
    """All scores of the first way that was right."""

    @classmethod
    def of(cls, config: Any, questions: Questions, device: torch.device, dtype: torch.dtype) -> "Expected":
        from transformers import AutoModelForTokenClassification

        trajectories = flat(questions)
        sample = np.unique(np.linspace(0, len(trajectories) - 1, SOLUTIONS).astype(int)).tolist()
        model = random_model(AutoModelForTokenClassification, config, device, dtype, "sdpa", **HEAD).eval()

        @torch.no_grad()
        def score_alone() -> list[np.ndarray]:
            scores = []
            for i in sample:
                ids = torch.as_tensor(trajectories[i].input_ids, device=device)[None].long()
                rows = torch.as_tensor(trajectories[i].step_tokens, device=device).long()
                scores.append(model(input_ids=ids).logits[0, rows, 0].double().cpu().numpy())
            return scores

        at_timed_precision = score_alone()
        model.to(torch.float32 if dtype == torch.bfloat16 else torch.float64)
        exact = score_alone()
        return cls(sample, exact, _error(at_timed_precision, exact))

    def check(self, scores: list[np.ndarray]) -> float:
        """The error of the scores of a way, which are those of all solutions.

        Raises:
            PQMError: the error is too large, or the scores differ from those of the first way.
        """
        error, limit = _error([scores[i] for i in self.sample], self.exact), TIMES * self.error + NEGLIGIBLE
        if not error <= limit:
            raise PQMError(
                f"its scores have an error of {error:.2g}, where {limit:.2g} was allowed; it is not timed until that "
                "is fixed"
            )
        self.first = self.first or scores
        difference = _error(scores, self.first)
        if not difference <= 2 * limit:  # each of the two may have an error
            raise PQMError(
                f"its scores differ by {difference:.2g} from those of the first way, where {2 * limit:.2g} was "
                "allowed; it is not timed until that is fixed"
            )
        return error


def _error(scores: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    if list(map(len, scores)) != list(map(len, expected)):
        return float("nan")  # the steps differ
    a, b = np.concatenate(scores).astype(np.float64), np.concatenate(expected).astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
