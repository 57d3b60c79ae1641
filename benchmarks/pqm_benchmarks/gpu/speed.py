"""The benchmarks at sizes that are known to fit 80 GB: one setting of each way, one round, two seconds."""

import itertools
from collections.abc import Callable
from typing import Any

from pqm_benchmarks.comparison.report import Results
from pqm_benchmarks.gpu.job import Job, Skipped
from pqm_benchmarks.kernels import report as kernel_report
from pqm_benchmarks.kernels import run as kernel_bench
from pqm_benchmarks.score import report as score_report
from pqm_benchmarks.score import run as score_bench
from pqm_benchmarks.shared.attempts import OUT_OF_MEMORY
from pqm_benchmarks.shared.shapes import ALL_SHAPES, AnyShape
from pqm_benchmarks.shared.text import short
from pqm_benchmarks.train import report as train_report
from pqm_benchmarks.train import run as train_bench
from pqm_fast.common.files import write_json
from pqm_fast.errors import PQMError

Settings = dict[str, dict[str, Any]]
"""Of each way, in the order in which they are timed: ours first, as the time may end."""
# Which of them fit was found with PyTorch's own allocator on a stand-in of 79.6 GiB.
TRAIN: dict[AnyShape, Settings] = {
    "Qwen2.5-0.5B": {
        "all": {"micro_batches": 1, "recompute": 0.0},
        "reference": {"parts": 1},
        "trl": {"batch": 32, "recompute": False},
        "packed": {"micro_batches": 1, "recompute": 0.0},
    },
    "Qwen2.5-1.5B": {
        "all": {"micro_batches": 2, "recompute": 0.0},
        "reference": {"parts": 1},
        "trl": {"batch": 16, "recompute": False},
    },
    "Qwen2.5-7B-8L": {
        "all": {"micro_batches": 2, "recompute": 0.0},
        "reference": {"parts": 2},
        "trl": {"batch": 8, "recompute": False},
    },
    "Qwen2.5-7B": {
        "all": {"micro_batches": 2, "recompute": 1.0},
        "trl": {"batch": 8, "recompute": True},
    },
    "tiny": {
        "tree": {"micro_batches": 1, "recompute": 0.0},
        "reference": {"parts": 1},
        "trl": {"batch": 16, "recompute": False},
        "packed": {"micro_batches": 1, "recompute": 0.0},
    },
}
SCORE: Settings = {
    "tree_rows": {"max_tokens": 16384},
    "published": {"batch": 4},
    "packed_rows": {"max_tokens": 16384},
}
OTHERS = ("reference", "trl", "openrlhf", "published", "padded")
WHOLE_7B = 120 * 2**30
"""Bytes of a card on which a step of the whole model fits: ours needs 109 to 113 GiB."""


def kernels(job: Job) -> None:
    """The bandwidth and the training size, with norm. Raises PQMError if the fused op is missing somewhere."""
    config = kernel_bench.KernelBench(
        device=job.device,
        sizes=("training", "bandwidth") if job.on_gpu else ("tiny",),
        widths=(1536, 4096) if job.on_gpu else (64,),
        norm="with",
        implementations=("published", "compiled", "fused") if job.on_gpu else ("published", "eager"),
        repeats=50 if job.on_gpu else 1,
    )

    def tell(results: dict[str, Any]) -> dict[str, Any]:
        return {
            "headline": f"{len(results['records'])} timings, copy {results['copy_gb_s']:,.0f} GB/s",
            "targets": kernel_report.target_rows(results) if job.on_gpu else [],
            "left_out": results["left_out"],
        }

    results = _measure(job, "kernels", lambda store: kernel_bench.measure(config, store), tell)
    own = "fused" if job.on_gpu else "eager"  # the interpreter is timed by nobody
    records = [r for r in results["records"] if r["implementation"] == own and r["pass"] == kernel_bench.PASSES[-1]]
    measured = {(record["size"], record["width"]) for record in records}
    if missing := [case for case in itertools.product(config.sizes, config.widths) if case not in measured]:
        cases = "; ".join(f"{size}, D {width}" for size, width in missing)
        raise PQMError(f"{own} was not measured: {cases}; see what was left out")


def train_half(job: Job) -> None:
    """At 0.5B."""
    _train(job, "train-0.5B", "Qwen2.5-0.5B")


def train_one_and_a_half(job: Job) -> None:
    """At 1.5B."""
    _not_again(job)
    _train(job, "train-1.5B", "Qwen2.5-1.5B")


def train_seven(job: Job) -> None:
    """At 7B, cut to 8 layers where the whole does not fit."""
    _not_again(job)
    import torch

    whole = torch.cuda.get_device_properties(0).total_memory >= WHOLE_7B
    _train(job, "train-7B", "Qwen2.5-7B" if whole else "Qwen2.5-7B-8L")


def _not_again(job: Job) -> None:
    if not job.on_gpu:
        raise Skipped("on a CPU it would be train-0.5B again")


def _train(job: Job, name: str, shape: AnyShape) -> None:
    shape = shape if job.on_gpu else "tiny"
    settings = TRAIN[shape]
    config = train_bench.TrainBench(
        device=job.device,
        shapes=(shape,),
        ways=tuple(settings),  # type: ignore[arg-type]
        questions=6 if job.on_gpu else 1,
        steps=1,
        seconds=2.0 if job.on_gpu else 0.0,
        rounds=1,
    )
    tell = _teller(job, "trajectories", train_report.targets)
    results = _measure(job, name, lambda store: train_bench.measure(config, store, settings), tell)
    _ours_are_right(results, list(settings))


def score(job: Job) -> None:
    """128 candidates of one question at 7B."""
    config = score_bench.ScoreBench(
        device=job.device,
        shapes=("Qwen2.5-7B" if job.on_gpu else "tiny",),
        ways=tuple(SCORE),  # type: ignore[arg-type]
        questions=1,
        solutions=128 if job.on_gpu else 8,
        seconds=2.0 if job.on_gpu else 0.0,
        rounds=1,
    )
    tell = _teller(job, "solutions", score_report.targets)
    results = _measure(job, "score-7B", lambda store: score_bench.measure(config, store, SCORE), tell)
    _ours_are_right(results, list(SCORE))


def _measure(
    job: Job,
    name: str,
    measure: Callable[[Callable[[Results], None]], Results],
    tell: Callable[[Results], dict[str, Any]],
) -> Results:
    """Stores OUT/NAME.json and what the summary says of it, whenever there is more."""

    def store(results: Results) -> None:
        write_json(job.out / f"{name}.json", results)
        job.store(**tell(results))

    return measure(store)


def _teller(job: Job, unit: str, targets: Callable[[Results], Any]) -> Callable[[Results], dict[str, Any]]:
    def tell(results: Results) -> dict[str, Any]:
        shapes = {ALL_SHAPES[record["shape"]].source for record in results["records"]}
        rates = [f"{r['title']} {short(r[f'{unit}_per_s'])}" for r in results["records"]]
        return {
            "headline": f"{', '.join(shapes)}, {unit}/s: {', '.join(rates)}",
            "targets": targets(results).rows if job.on_gpu else [],
            "left_out": {f"{failed['way']}, {failed['shape']}": failed["why"] for failed in results["failed"]},
        }

    return tell


def _ours_are_right(results: Results, ways: list[str]) -> None:
    """Another's way may be missing; without the first one, which is ours, there is nothing to say. And two of ours that
    do not agree are a failure, whichever of them is wrong."""
    for failed in results["failed"]:
        own = failed["way"] not in OTHERS
        if failed["way"] == ways[0] or (own and failed["why"] != OUT_OF_MEMORY):
            raise PQMError(f"{failed['way']}: {failed['why']}")
