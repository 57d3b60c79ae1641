"""Measures how fast a run is, and estimates how much time it has left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pqm_fast.data.pack import PackedBatch
from pqm_fast.ranks.group import ALONE, Ranks

# A forward pass takes about a third of the time of a training step. Used until an evaluation has been measured.
FORWARD_SHARE = 1 / 3


class Clock:
    """Measures rates since the last call of `rates`, without the time of evaluations and checkpoints.

    Tokens are those that are computed: a token that trajectories share in a prefix tree counts once, padding does not
    count. `evaluations` maps the step that each evaluation follows to its number of tokens.
    """

    def __init__(self, total_steps: int, evaluations: dict[int, int]) -> None:
        self.total_steps, self.evaluations = total_steps, evaluations
        self.evaluated_tokens_per_second: float | None = None
        self._reset(time.perf_counter())

    def _reset(self, now: float) -> None:
        self.started, self.paused_seconds = now, 0.0
        self.tokens = self.trajectories = self.steps = 0

    def count(self, batches: list[PackedBatch]) -> None:
        """Counts the micro-batches of a finished optimizer step."""
        self.tokens += sum(b.num_tokens for b in batches)
        self.trajectories += sum(b.num_trajectories for b in batches)
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time in this context does not count."""
        start = time.perf_counter()
        yield
        self.paused_seconds += time.perf_counter() - start

    @contextmanager
    def evaluating(self, step: int) -> Iterator[None]:
        """Measures the evaluation after `step`; those to come are assumed to be as fast."""
        start = time.perf_counter()
        with self.paused():
            yield
        self.evaluated_tokens_per_second = self.evaluations[step] / max(1e-9, time.perf_counter() - start)

    def rates(self, now: float, step: int, device: torch.device, ranks: Ranks = ALONE) -> dict[str, float]:
        """The rates of all ranks up to `now`, the time when `step`, the last step that was counted, finished. The next
        one may be under way. `eta_seconds` is the time for all that follows `step`, including evaluations, and
        `peak_memory_gb` that of the rank with the most."""
        peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
        counts = ranks.gather((self.tokens, self.trajectories, peak))
        tokens, trajectories = sum(count[0] for count in counts), sum(count[1] for count in counts)
        seconds = max(1e-9, now - self.started - self.paused_seconds)
        tokens_per_second = tokens / seconds
        evaluation_rate = self.evaluated_tokens_per_second or tokens_per_second / FORWARD_SHARE
        to_evaluate = sum(tokens for evaluated_step, tokens in self.evaluations.items() if evaluated_step >= step)
        figures = {
            "tokens_per_second": tokens_per_second,
            "trajectories_per_second": trajectories / seconds,
            "eta_seconds": (self.total_steps - step) * seconds / max(1, self.steps) + to_evaluate / evaluation_rate,
        }
        if device.type == "cuda":
            figures["peak_memory_gb"] = max(count[2] for count in counts)
        self._reset(now)
        return figures
