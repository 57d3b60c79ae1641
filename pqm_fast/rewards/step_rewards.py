"""A reward for each step of a solution, from its Q-values: a table of names, and what each is."""

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Any

from pqm_fast.errors import PQMError

MIN_FORM_TEMPERATURE = 0.1  # of PURE, for rewards from -1 to 1
PREFIX_REWARD = 0.5  # alpha of VPPO


def step_rewards(scores: Sequence[float | None], how: str = "difference", **numbers: Any) -> list[float]:
    """The reward of each step of one solution.

    | `how` | reward of step t | sum | source |
    |---|---|---|---|
    | `difference` | q_t - q_{t-1}, where q_0 = 0 | the last q | the advantage; Q_0 = 0 in PQM |
    | `probability-difference` | sigmoid(q_t) - sigmoid(q_{t-1}) | sigmoid(last q) - 1/2 | after arXiv 2410.08146 |
    | `log-sigmoid` | log sigmoid(q_t) | `aggregate(scores, "prod")` | arXiv 2509.26578: log(1 - h(t)), `--loss crm` |
    | `soft-min` | r_t * softmax(-r / temperature)_t, r = tanh(q/2) | tends to min r | arXiv 2504.15275 (PURE) |
    | `verified-prefix` | see `verified_prefix` | 1, prefix_reward or 0 | arXiv 2601.18984 (VPPO) |

    A step without a score (None: it was cut off) and all behind it get 0.0, which is neither credit nor blame. For
    `log-sigmoid`, whose rewards are never above 0, that is the best a step can get: see that solutions fit the context.

    Args:
        scores: one Q-value (logit) or None per step, in order.
        how: a name in `REWARDS`.
        numbers: `temperature` of `soft-min` (0.1); `threshold` (must be given), `prefix_reward` (0.5) and `correct`
            of `verified-prefix`.

    Returns:
        One number per step.

    Raises:
        PQMError: no steps, an unknown `how` or number, a score that is not finite, or a number out of its range.
    """
    if how not in REWARDS:
        raise PQMError(f"unknown step reward {how!r}; choose one of {', '.join(REWARDS)}")
    known = list(inspect.signature(REWARDS[how]).parameters)[2:]
    if unknown := [name for name in numbers if name not in known]:
        raise PQMError(f"step reward {how!r} takes {', '.join(known) or 'no numbers'}; found {', '.join(unknown)}")
    if not scores:
        raise PQMError("no step scores were given: a solution has at least one step")
    for score in scores:
        if score is not None and not math.isfinite(score):
            raise PQMError(f"step scores must be finite, found {score}: check the model's output")
    q = [float(score) for score in takewhile(lambda score: score is not None, scores) if score is not None]
    rewards = REWARDS[how](q, len(q) < len(scores), **numbers)
    return rewards + [0.0] * (len(scores) - len(q))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), for any x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def difference(q: list[float], cut_off: bool) -> list[float]:
    """How much each step changed the logit of success."""
    return [after - before for before, after in pairwise([0.0, *q])]


def probability_difference(q: list[float], cut_off: bool) -> list[float]:
    """How much each step changed the probability of success."""
    # between two probabilities close to 1, the difference of those of failure keeps the digits
    return [
        sigmoid(-before) - sigmoid(-after) if min(before, after) > 0 else sigmoid(after) - sigmoid(before)
        for before, after in pairwise([0.0, *q])
    ]


def log_sigmoid(q: list[float], cut_off: bool) -> list[float]:
    """log sigmoid(q_t)."""
    return [min(x, 0.0) - math.log1p(math.exp(-abs(x))) for x in q]


def soft_min(q: list[float], cut_off: bool, temperature: float = MIN_FORM_TEMPERATURE) -> list[float]:
    """Min-form credit assignment: only the worst steps count. r_t = p_t - (1 - p_t) = tanh(q_t / 2), from -1 to 1, as
    in PURE, where the temperature is 0.1."""
    if not 0 < temperature < math.inf:
        raise PQMError(f"temperature: {temperature} was given; it must be a finite number above 0")
    r = [math.tanh(x / 2) for x in q]
    weights = [math.exp((min(r) - x) / temperature) for x in r]
    total = sum(weights)
    return [weight / total * x for weight, x in zip(weights, r, strict=True)]


def verified_prefix(
    q: list[float],
    cut_off: bool,
    threshold: float | None = None,
    prefix_reward: float = PREFIX_REWARD,
    correct: bool | None = None,
) -> list[float]:
    """Eq. 6 of VPPO: the reward of a right solution is 1, at its last step; that of a wrong one is `prefix_reward`, at
    the last step before its first error. All other steps get 0. The first error is the first step with q < `threshold`.

    `correct` says whether the answer was checked to be right, as the paper requires. With None the model judges: a
    solution is right if no step is below the threshold and none was cut off.
    """
    if threshold is None or not math.isfinite(threshold):
        raise PQMError(
            f"threshold: {threshold} was given; 'verified-prefix' needs the score below which a step is wrong, "
            "such as pqm_fast.evaluate.calibrate_threshold finds on labelled solutions"
        )
    if not 0 <= prefix_reward <= 1:
        raise PQMError(f"prefix_reward: {prefix_reward} was given; it must be from 0 to 1")
    verified = next((t for t, x in enumerate(q) if x < threshold), len(q))
    if correct is None:
        correct = verified == len(q) and not cut_off
    rewards = [0.0] * len(q)
    if correct and q:
        rewards[-1] = 1.0
    elif verified:
        rewards[verified - 1] = float(prefix_reward)
    return rewards


REWARDS: dict[str, Callable[..., list[float]]] = {
    "difference": difference,
    "probability-difference": probability_difference,
    "log-sigmoid": log_sigmoid,
    "soft-min": soft_min,
    "verified-prefix": verified_prefix,
}
"""What computes each reward: (the scores before the first missing one, whether one is missing, numbers)."""
