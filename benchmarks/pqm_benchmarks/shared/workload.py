"""Made-up trajectories with the lengths of Math-Shepherd and shared first steps, for all that is counted and timed.

Lengths are log-normal with the mu and sigma that Math-Shepherd's published bucket counts give. A question has 22
solutions, as in Math-Shepherd, unless more are asked for. The first solution draws all of its steps. Each further one
copies a geometric number of steps from an earlier one, and draws the rest. The parameter of that number is set so that
22 solutions have `tree_ratio` times as many tokens as distinct prefixes; more solutions have whatever ratio that
parameter gives. Steps, questions and the spread between questions are those of GSM8K solutions with the Qwen2
tokenizer (1,319 questions, four solutions each). Token ids are random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError

MU, SIGMA = 5.62, 0.518  # of the logarithm of a trajectory's tokens, its question included
LONGEST = 2048
SOLUTIONS = 22
BETWEEN_QUESTIONS = 0.75  # share of the variance of log length that lies between questions
QUESTION_MEDIAN, QUESTION_SIGMA = 57, 0.35  # tokens of a question; they grow with the length of its solutions
STEP = 30  # tokens of a step, its step token included
CORRECT = 0.9  # probability that the step after a correct one is correct

STEP_ID = 1
FIRST_ID = 2  # solution i of a question branches off with the token FIRST_ID + i, so that no two share it by chance
TOLERANCE = 0.02  # of the tree ratio

# The published trainer batches trajectories of similar length: (longest in the bucket, trajectories in a batch).
BUCKETS = ((512, 64), (1024, 24), (math.inf, 8))

Questions = Sequence[Sequence[Trajectory]]
"""The solutions of each question."""


def make_workload(
    questions: int, seed: int, tree_ratio: float = 1.6, *, solutions: int = SOLUTIONS, vocabulary: int = 32_000
) -> list[list[Trajectory]]:
    """The solutions of each question. Every step has a label, and its Q-value is read at a step token.

    The result depends on the arguments alone. Trajectories of one question share whole steps, with their labels, or
    nothing beyond the question; none is the beginning of another. `vocabulary` is the number of token ids.

    Raises:
        PQMError: 22 solutions to this many questions cannot have that tree ratio, to within 0.02; or the number of
            questions, solutions or token ids is too small.
    """
    if questions < 1 or seed < 0:
        raise PQMError(f"workload: questions must be positive and seed not negative, found {questions} and {seed}")
    if not 1 <= solutions < vocabulary - FIRST_ID:
        most = vocabulary - FIRST_ID - 1
        raise PQMError(
            f"workload: {vocabulary} token ids are enough for 1 to {most} solutions to a question, found {solutions}"
        )

    def draw(count: int) -> list[_Draws]:
        # question k has the k-th quantile, so that even a few questions are spread like many
        z = [NormalDist().inv_cdf((k + 0.5) / questions) for k in range(questions)]
        return [_draw(z_k, count, np.random.default_rng([seed, k])) for k, z_k in enumerate(z)]

    share, drawn = _share(draw(SOLUTIONS), tree_ratio), draw(solutions)
    groups = [
        _write(draws, _outline(draws, share), np.random.default_rng([seed, k, 1]), vocabulary)
        for k, draws in enumerate(drawn)
    ]
    return [groups[k] for k in np.random.default_rng(seed).permutation(questions)]


def published_batches(lengths: np.ndarray, seed: int) -> list[np.ndarray]:
    """The batches of the published trainer, as indices into `lengths`: shuffled within buckets of similar length."""
    rng, batches, above = np.random.default_rng(seed), [], 0.0
    for longest, size in BUCKETS:
        members = rng.permutation(np.flatnonzero((lengths > above) & (lengths <= longest)))
        batches += [members[start : start + size] for start in range(0, len(members), size)]
        above = longest
    return batches


def flat(questions: Questions) -> list[Trajectory]:
    """All trajectories, question by question."""
    return [trajectory for solutions in questions for trajectory in solutions]


@dataclass(frozen=True)
class _Draws:
    """All random draws for the outline of one question's n solutions. They do not depend on how much is copied."""

    question: int  # tokens
    lengths: np.ndarray  # [n] tokens
    follows: np.ndarray  # [n] the earlier solution from which each copies its first steps
    patience: np.ndarray  # [n] uniform, from which the number of copied steps is computed
    widths: np.ndarray  # [n, steps] relative widths of the steps that are not copied
    right: np.ndarray  # [n, steps] whether a step after a correct one is correct


def _draw(z: float, solutions: int, rng: np.random.Generator) -> _Draws:
    question = round(QUESTION_MEDIAN * math.exp(QUESTION_SIGMA * z))
    within = rng.standard_normal(solutions)
    lengths = np.exp(MU + SIGMA * (math.sqrt(BETWEEN_QUESTIONS) * z + math.sqrt(1 - BETWEEN_QUESTIONS) * within))
    most = LONGEST // STEP + 1
    return _Draws(
        question=question,
        lengths=np.clip(np.rint(lengths).astype(int), question + 2, LONGEST),
        follows=(rng.random(solutions) * np.arange(solutions)).astype(int),
        patience=1 - rng.random(solutions),
        widths=rng.uniform(0.5, 1.5, (solutions, most)),
        right=rng.random((solutions, most)) < CORRECT,
    )


def _outline(drawn: _Draws, share: float) -> list[tuple[list[int], int]]:
    """(where each step ends, how many steps are copied) of every solution. `share` is the probability of copying one
    more step."""
    solutions: list[tuple[list[int], int]] = []
    for i, length in enumerate(drawn.lengths.tolist()):
        copied: list[int] = []
        if i and share > 0:
            count = int(math.log(drawn.patience[i]) / math.log(share))
            model = solutions[drawn.follows[i]][0][:-1]  # without its last step, where the solution would end
            copied = [end for end in model[:count] if end <= length - 2]
        start = copied[-1] if copied else drawn.question
        widths = np.cumsum(drawn.widths[i, : max(1, round((length - start) / STEP))])
        ends = np.rint(start + (length - start) * widths / widths[-1]).astype(int)
        solutions.append((copied + ends.tolist(), len(copied)))
    return solutions


def _ratio(drawn: list[_Draws], share: float) -> float:
    """Tokens over distinct prefixes."""
    total = unique = 0
    for draws in drawn:
        unique += draws.question
        for ends, copied in _outline(draws, share):
            total += ends[-1]
            unique += ends[-1] - (ends[copied - 1] if copied else draws.question)
    return total / unique


def _share(drawn: list[_Draws], tree_ratio: float) -> float:
    """The probability of copying one more step that gives the tree ratio, which grows with it."""
    low, high = 0.0, 0.999
    least, most = _ratio(drawn, low), _ratio(drawn, high)
    for _ in range(20):
        middle = (low + high) / 2
        ratio = _ratio(drawn, middle)
        if abs(ratio - tree_ratio) < TOLERANCE / 20:
            return middle
        low, high = (middle, high) if ratio < tree_ratio else (low, middle)
    if not abs(ratio - tree_ratio) <= TOLERANCE:  # NaN is wrong too
        raise PQMError(
            f"tree ratio: {len(drawn)} questions can have one between {least:.2f}, where solutions share the question "
            f"alone, and {most:.2f}, found {tree_ratio}; give another, or more questions"
        )
    return middle


def _write(
    drawn: _Draws, outline: list[tuple[list[int], int]], rng: np.random.Generator, vocabulary: int
) -> list[Trajectory]:
    """Token ids and labels for an outline."""
    solutions: list[Trajectory] = []
    for i, (ends, copied) in enumerate(outline):
        start = ends[copied - 1] if copied else drawn.question
        ids = rng.integers(FIRST_ID + len(outline), vocabulary, ends[-1], dtype=np.int32)
        labels = np.logical_and.accumulate(drawn.right[i, : len(ends) - copied]).astype(np.float32)
        if i:
            model = solutions[drawn.follows[i]]
            ids[:start] = model.input_ids[:start]
            labels = np.concatenate([model.labels[:copied], labels * (model.labels[copied - 1] if copied else 1)])
        ids[start] = FIRST_ID + i
        rows = np.array(ends, dtype=np.int32) - 1
        ids[rows] = STEP_ID
        solutions.append(Trajectory(ids, rows, labels))
    return solutions
