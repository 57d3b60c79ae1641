"""What the server counts, in the form that Prometheus reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("pqm_fast_requests", "Requests answered.", ["path", "code"], registry=registry)
        self.seconds = Histogram(
            "pqm_fast_request_seconds", "From the last byte of a request to its answer.", ["path"], registry=registry
        )
        self.in_progress = Gauge("pqm_fast_requests_in_progress", "Requests at work or waiting.", registry=registry)
        self.batches = Counter("pqm_fast_batches", "Batches scored.", registry=registry)
        self.failed_batches = Counter("pqm_fast_failed_batches", "Batches that failed.", registry=registry)
        self.solutions = Counter("pqm_fast_solutions", "Solutions scored.", registry=registry)
        self.tokens = Counter("pqm_fast_tokens", "Tokens of these solutions, each counted whole.", registry=registry)
        self.scoring = Counter("pqm_fast_scoring_seconds", "Time spent scoring.", registry=registry)
        self.batch_size = Histogram(
            "pqm_fast_batch_solutions",
            "Solutions of a batch.",
            buckets=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
            registry=registry,
        )

    @contextmanager
    def batch(self, solutions: int, tokens: int) -> Iterator[None]:
        """Counts the batch that is scored within, once it is done."""
        began = perf_counter()
        yield
        self.scoring.inc(perf_counter() - began)
        self.batches.inc()
        self.solutions.inc(solutions)
        self.tokens.inc(tokens)
        self.batch_size.observe(solutions)

    def text(self) -> bytes:
        return generate_latest(self.registry)
