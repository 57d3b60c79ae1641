"""The scores that every way must have, or it is not timed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pqm_benchmarks.train.ways.models import random_model
from pqm_benchmarks.train.ways.ours import HEAD
from pqm_benchmarks.train.ways.way import Questions, flat
from pqm_fast.errors import PQMError

SOLUTIONS = 32  # held against more digits, over all questions
TIMES = 2.0  # the error that a way may have, over that of transformers' own model at the same precision
LEAST = 1e-5  # an error that is none: norms of transformers are float32 in any model


@dataclass
class Expected:
    """Errors are relative, in the norm over all steps of several solutions."""

    sample: list[int]
    """Solutions, spread over all questions."""
    exact: list[np.ndarray]
    """Their scores, each alone, through transformers' own model of the same weights in more digits."""
    error: float
    """Of transformers' own model at the precision that is timed, each solution alone."""
    first: list[np.ndarray] | None = None
    """All scores of the first way that was right."""

    @classmethod
    def of(cls, config: Any, questions: Questions, device: torch.device, dtype: torch.dtype) -> "Expected":
        from transformers import AutoModelForTokenClassification

        trajectories = flat(questions)
        sample = np.unique(np.linspace(0, len(trajectories) - 1, SOLUTIONS).astype(int)).tolist()
        model = random_model(AutoModelForTokenClassification, config, device, dtype, "sdpa", **HEAD).eval()

        @torch.no_grad()
        def alone() -> list[np.ndarray]:
            found = []
            for i in sample:
                ids = torch.as_tensor(trajectories[i].input_ids, device=device)[None].long()
                rows = torch.as_tensor(trajectories[i].step_tokens, device=device).long()
                found.append(model(input_ids=ids).logits[0, rows, 0].double().cpu().numpy())
            return found

        own = alone()
        model.to(torch.float32 if dtype == torch.bfloat16 else torch.float64)
        exact = alone()
        return cls(sample, exact, _error(own, exact))

    def hold(self, scores: list[np.ndarray]) -> float:
        """The error of all scores of a way. Raises PQMError if it is too large, or if they are not those of the first
        way."""
        error, limit = _error([scores[i] for i in self.sample], self.exact), TIMES * self.error + LEAST
        if not error <= limit:
            raise PQMError(
                f"its scores have an error of {error:.2g}, where {limit:.2g} was allowed; it is not timed until that "
                "is mended"
            )
        self.first = self.first or scores
        apart = _error(scores, self.first)
        if not apart <= 2 * limit:  # each may have its own error
            raise PQMError(
                f"its scores differ by {apart:.2g} from those of the first way, where {2 * limit:.2g} was allowed; it "
                "is not timed until that is mended"
            )
        return error


def _error(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    if [len(own) for own in found] != [len(own) for own in expected]:
        return float("nan")  # scores of other steps
    a, b = np.concatenate(found).astype(np.float64), np.concatenate(expected).astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
