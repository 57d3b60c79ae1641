"""Gathers the solutions of requests that arrive close together, and scores them in one batch, on its own thread."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from pqm_fast.data.encode import Encoded
from pqm_fast.errors import Diverged
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.scoring.stored import Scores
from pqm_fast.serve.metrics import Metrics
from pqm_fast.serve.problem import Problem

Solution = tuple[str, Encoded]
"""The question of a solution, and its tokens."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    """The solutions of one request. `answer` becomes their scores, or the error that prevents them."""

    solutions: Sequence[Solution]
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[list[Scores]]" = field(init=False)

    def __post_init__(self) -> None:
        self.answer = self.loop.create_future()

    @property
    def tokens(self) -> int:
        return sum(len(encoded.input_ids) for _, encoded in self.solutions)

    @property
    def abandoned(self) -> bool:
        """Nobody waits for it: its time was up, or the client has gone."""
        return self.answer.cancelled()

    def settle(self, result: list[Scores] | Exception) -> None:
        """Called on the thread of the batcher; futures belong to that of the loop."""

        def set_result() -> None:
            if self.answer.done():
                return
            if isinstance(result, Exception):
                self.answer.set_exception(result)
            else:
                self.answer.set_result(result)

        self.loop.call_soon_threadsafe(set_result)


class Batcher:
    """Scores the solutions of many requests at once.

    A job that arrives while nothing is computed waits `gather_seconds` for others. While a batch is computed, jobs
    queue up, and the next batch takes as many of them as fit `scorer.max_tokens`, in the order of their arrival. A
    job that fails does not disturb the others of its batch.
    """

    def __init__(self, scorer: Scorer, gather_seconds: float, metrics: Metrics):
        self.scorer, self.gather_seconds, self.metrics = scorer, gather_seconds, metrics
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._left: _Job | None = None  # taken from the queue, but for the next batch
        # one thread, because a fast tokenizer must not be used by two at once
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._thread = threading.Thread(target=self._work, name="score", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs: it does until `close`, unless something unforeseen has ended it."""
        return self._thread.is_alive()

    async def encode(self, use: Callable[..., T], *arguments: Any) -> T:
        """`use(*arguments)`, on the thread that may use the tokenizer."""
        return await asyncio.get_running_loop().run_in_executor(self._encoding, use, *arguments)

    async def score(self, solutions: Sequence[Solution]) -> list[Scores]:
        """The scores of the steps of each solution. A cancelled call is not computed if its batch has not begun.

        Raises Problem if the model cannot score one of them.
        """
        job = _Job(solutions, asyncio.get_running_loop())
        self._jobs.put(job)
        return await job.answer

    def close(self) -> None:
        """Ends the thread after the jobs that it has."""
        self._jobs.put(None)
        self._thread.join()
        self._encoding.shutdown()

    def _work(self) -> None:
        while batch := self._next_batch():
            waiting = [job for job in batch if not job.abandoned]
            try:
                if waiting:
                    self._score(waiting)
            except Exception as error:
                # one of them is to blame, or all together are too much for the device: each on its own
                self.metrics.failed_batches.inc()
                logger.warning("a batch of %d requests failed, and each is scored alone: %r", len(waiting), error)
                for job in waiting:
                    if not job.answer.done():
                        self._score_alone(job)

    def _next_batch(self) -> list[_Job]:
        """The jobs of the next batch; an empty list at the end."""
        busy = self._left is not None or not self._jobs.empty()
        job, self._left = self._left or self._jobs.get(), None
        batch: list[_Job] = []
        tokens = 0
        deadline = time.monotonic() + (0 if busy else self.gather_seconds)
        while job is not None:
            tokens += job.tokens
            if batch and tokens > self.scorer.max_tokens:
                self._left = job
                return batch
            batch.append(job)
            try:
                job = self._jobs.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                return batch
        if batch:
            self._jobs.put(None)  # the end, which the next call returns
        return batch

    def _score_alone(self, job: _Job) -> None:
        try:
            self._score([job])
        except Diverged as error:
            logger.error("%s", error)  # it names the model's folder, which is not for clients
            job.settle(Problem(500, "broken_model", "the model's Q-values are not finite"))
        except torch.OutOfMemoryError:
            job.settle(Problem(500, "out_of_memory", "the device is out of memory; send fewer solutions at once"))
        except Exception:  # whatever it is, the next request must be answered
            logger.exception("a request could not be scored")
            job.settle(Problem(500, "scoring_failed", "the model failed; the server's log says why"))

    def _score(self, jobs: Sequence[_Job]) -> None:
        """Scores the solutions of the jobs, and settles each job."""
        solutions = [solution for job in jobs for solution in job.solutions]
        with self.metrics.batch(len(solutions), sum(job.tokens for job in jobs)):
            scores = iter(self.scorer.score_encoded(solutions))
        for job in jobs:
            job.settle([next(scores) for _ in job.solutions])
