"""The benchmarks at sizes that are known to fit 80 GB, with one setting of each way, in one round of two seconds."""

import itertools
from collections.abc import Callable
from typing import Any

from pqm_benchmarks.comparison.report import Results
from pqm_benchmarks.gpu.job import Job, Skipped
from pqm_benchmarks.kernels import probe as probe_bench
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
"""The setting of each way, in the order in which they are timed: ours first, because the time may run out."""
# PyTorch's own allocator, on a stand-in of 79.6 GiB, has shown that these settings fit.
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
"""A step of the whole 7B model fits from this many bytes of memory on: ours needs 109 to 113 GiB."""


def kernels(job: Job) -> None:
    """The bandwidth size and the training size, with norm.

    Raises:
        PQMError: the fused op was not measured in every case.
    """
    config = kernel_bench.KernelBench(
        device=job.device,
        sizes=("training", "bandwidth") if job.on_gpu else ("tiny",),
        widths=(1536, 4096) if job.on_gpu else (64,),
        norm="with",
        implementations=("published", "compiled", "fused") if job.on_gpu else ("published", "eager"),
        repeats=50 if job.on_gpu else 1,
    )

    def figures(results: dict[str, Any]) -> dict[str, Any]:
        return {
            "headline": f"{len(results['records'])} timings, copy {results['copy_gb_s']:,.0f} GB/s",
            "targets": kernel_report.target_rows(results) if job.on_gpu else [],
            "left_out": results["left_out"],
        }

    results = _measure(job, "kernels", lambda store: kernel_bench.measure(config, store), figures)
    needed = "fused" if job.on_gpu else "eager"  # times of Triton's interpreter say nothing
    records = [r for r in results["records"] if r["implementation"] == needed and r["pass"] == kernel_bench.PASSES[-1]]
    measured = {(record["size"], record["width"]) for record in records}
    if missing := [case for case in itertools.product(config.sizes, config.widths) if case not in measured]:
        cases = "; ".join(f"{size}, D {width}" for size, width in missing)
        raise PQMError(f"{needed} was not measured: {cases}; see what was left out")


def probe(job: Job) -> None:
    """Training a head on stored states: 1 and 10 GB, in small batches, in large ones and in one.

    Raises:
        PQMError: a case failed for a reason other than memory.
    """
    config = probe_bench.ProbeBench(
        device=job.device,
        gigabytes=(1.0, 10.0) if job.on_gpu else (0.001,),
        width=1536 if job.on_gpu else 64,
        seconds=0.2 if job.on_gpu else 0.0,
    )

    def figures(results: dict[str, Any]) -> dict[str, Any]:
        cases = (f"{probe_bench.case_name(r)} {short(r['epochs_per_s'])}" for r in results["records"])
        return {"headline": f"epochs/s: {'; '.join(cases)}", "left_out": results["left_out"]}

    results = _measure(job, "probe", lambda store: probe_bench.measure(config, store), figures)
    if wrong := [f"{case}: {why}" for case, why in results["left_out"].items() if why != OUT_OF_MEMORY]:
        raise PQMError("; ".join(wrong))


def train_half(job: Job) -> None:
    """Training steps at 0.5B."""
    _train(job, "train-0.5B", "Qwen2.5-0.5B")


def train_one_and_a_half(job: Job) -> None:
    """Training steps at 1.5B."""
    _skip_on_cpu(job)
    _train(job, "train-1.5B", "Qwen2.5-1.5B")


def train_seven(job: Job) -> None:
    """Training steps at 7B, cut to 8 layers if the whole model does not fit."""
    _skip_on_cpu(job)
    import torch

    whole = torch.cuda.get_device_properties(0).total_memory >= WHOLE_7B
    _train(job, "train-7B", "Qwen2.5-7B" if whole else "Qwen2.5-7B-8L")


def _skip_on_cpu(job: Job) -> None:
    if not job.on_gpu:
        raise Skipped("on a CPU it would repeat train-0.5B")


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
    figures = _figures_of(job, "trajectories", train_report.targets)
    results = _measure(job, name, lambda store: train_bench.measure(config, store, settings), figures)
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
    figures = _figures_of(job, "solutions", score_report.targets)
    results = _measure(job, "score-7B", lambda store: score_bench.measure(config, store, SCORE), figures)
    _ours_are_right(results, list(SCORE))


def _measure(
    job: Job,
    name: str,
    measure: Callable[[Callable[[Results], None]], Results],
    figures: Callable[[Results], dict[str, Any]],
) -> Results:
    """Stores OUT/NAME.json, and its `figures` for the summary, whenever there are more results."""

    def store(results: Results) -> None:
        write_json(job.out / f"{name}.json", results)
        job.store(**figures(results))

    return measure(store)


def _figures_of(job: Job, unit: str, targets: Callable[[Results], Any]) -> Callable[[Results], dict[str, Any]]:
    def figures(results: Results) -> dict[str, Any]:
        shapes = {ALL_SHAPES[record["shape"]].source for record in results["records"]}
        rates = [f"{r['title']} {short(r[f'{unit}_per_s'])}" for r in results["records"]]
        return {
            "headline": f"{', '.join(shapes)}, {unit}/s: {', '.join(rates)}",
            "targets": targets(results).rows if job.on_gpu else [],
            "left_out": {f"{failed['way']}, {failed['shape']}": failed["why"] for failed in results["failed"]},
        }

    return figures


def _ours_are_right(results: Results, ways: list[str]) -> None:
    """Raises PQMError if the first way, which is ours, has failed, or if any of ours has failed for a reason other than
    memory, such as a result that differs from the others. Third-party ways may fail."""
    for failed in results["failed"]:
        ours = failed["way"] not in OTHERS
        if failed["way"] == ways[0] or (ours and failed["why"] != OUT_OF_MEMORY):
            raise PQMError(f"{failed['way']}: {failed['why']}")
