"""A process reward model for search-and-learn: best-of-n, beam search, diverse verifier tree search."""

from collections.abc import Sequence

from pqm_fast.rewards.solutions import SEPARATOR, Model, SolutionScorer
from pqm_fast.rewards.step_rewards import sigmoid


class SearchAndLearnPRM:
    """search-and-learn's `PRM`, without importing it: `beam_search(examples, config, llm, SearchAndLearnPRM(MODEL))`.

    Args:
        model: a checkpoint (folder or hub id), the URL of a running `pqm-fast serve`, or a scorer.
        separator: between steps; search-and-learn stops each at a blank line.
    """

    def __init__(self, model: Model, *, separator: str = SEPARATOR):
        self.scorer = SolutionScorer(model, separator)

    def score(self, questions: Sequence[str], outputs: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """A list for each question, of a list for each solution, of a number for each step: the sigmoid of its score,
        from 0 to 1. A step without a score gets 0, so that the solution is not preferred.

        Args:
            questions: as texts.
            outputs: the solutions to each, complete or not, as texts.

        Raises:
            PQMError: as `Scorer.score`.
        """
        pairs = [(question, text) for question, texts in zip(questions, outputs, strict=True) for text in texts]
        scores = iter(self.scorer.score(pairs))
        return [[[0.0 if q is None else sigmoid(q) for q in next(scores)] for _ in texts] for texts in outputs]
