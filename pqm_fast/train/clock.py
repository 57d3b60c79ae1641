"""How fast a run is, and how long it will still take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pqm_fast.data.pack import PackedBatch

# A forward pass is about a third of a training step. Taken until an evaluation has been measured.
FORWARD_SHARE = 1 / 3


class Clock:
    """Rates since they were last asked for, evaluations and checkpoints not counted.

    Tokens are those computed: one that trajectories share in a prefix tree counts once, padding not at all.
    `evaluations`: by the step that each follows, how many tokens it has.
    """

    def __init__(self, total_steps: int, evaluations: dict[int, int]) -> None:
        self.total_steps, self.evaluations = total_steps, evaluations
        self.evaluated_per_second: float | None = None
        self._reset(time.perf_counter())

    def _reset(self, now: float) -> None:
        self.started, self.away = now, 0.0
        self.tokens = self.trajectories = self.steps = 0

    def count(self, batches: list[PackedBatch]) -> None:
        self.tokens += sum(b.num_tokens for b in batches)
        self.trajectories += sum(b.num_trajectories for b in batches)
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        since = time.perf_counter()
        yield
        self.away += time.perf_counter() - since

    @contextmanager
    def evaluating(self, step: int) -> Iterator[None]:
        """While the evaluation after `step` goes on; those to come are taken to be as fast."""
        since = time.perf_counter()
        with self.paused():
            yield
        self.evaluated_per_second = self.evaluations[step] / max(1e-9, time.perf_counter() - since)

    def rates(self, now: float, step: int, device: torch.device) -> dict[str, float]:
        """Up to `now`, when `step`, the last one that was counted, had finished; the next one may be under way. What
        follows it, evaluations among it, is in `eta_seconds`."""
        seconds = max(1e-9, now - self.started - self.away)
        tokens_per_second = self.tokens / seconds
        evaluated = self.evaluated_per_second or tokens_per_second / FORWARD_SHARE
        to_evaluate = sum(tokens for after, tokens in self.evaluations.items() if after >= step)
        figures = {
            "tokens_per_second": tokens_per_second,
            "trajectories_per_second": self.trajectories / seconds,
            "eta_seconds": (self.total_steps - step) * seconds / max(1, self.steps) + to_evaluate / evaluated,
        }
        if device.type == "cuda":
            figures["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        self._reset(now)
        return figures
