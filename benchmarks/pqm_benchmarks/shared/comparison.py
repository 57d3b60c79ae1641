"""What benchmarks that time several ways to do one thing have in common: options, models, the file, and its table.

Weights and tokens are random, lengths and shared prefixes those of `workload.py`, the same for every way.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pqm_benchmarks.shared.comparison_report import Record, Results, merge
from pqm_benchmarks.shared.shapes import EVERY, AnyShape
from pqm_fast.common.files import write_json
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    import torch

Add = Callable[[list[Record], list[dict[str, str]]], None]
"""Takes the records of a model so far, and {"way", "why"} of each way that has none."""


class Options(Protocol):
    """Those that every such benchmark has; it is a frozen dataclass."""

    @property
    def out(self) -> str: ...
    @property
    def results(self) -> tuple[str, ...]: ...
    @property
    def device(self) -> str: ...
    @property
    def shapes(self) -> tuple[AnyShape, ...]: ...
    @property
    def ways(self) -> tuple[Any, ...]: ...
    @property
    def tries(self) -> int | None: ...


@dataclass(frozen=True)
class Chosen:
    """Device, ways and models: those of the options, or what the device is measured with."""

    device: "torch.device"
    dtype: "torch.dtype"
    ways: tuple[str, ...]
    shapes: tuple[AnyShape, ...]
    tries: int
    """Settings that are tried of each way, at most."""
    order: tuple[str, ...]
    """Of all ways there are, in results: others, then ours one switch at a time."""


def choose(config: Options, ways: Sequence[str], compiled: Sequence[str], positive: Sequence[str]) -> Chosen:
    """`ways` has all of them, `compiled` those that a CPU leaves out by default, `positive` the options that must be.

    Raises PQMError for options that make no sense.
    """
    import torch

    from pqm_benchmarks.shared.devices import pick

    device = pick(config.device)
    for option in (*positive, "tries"):
        value = getattr(config, option)
        if value is not None and value < 1:
            raise PQMError(f"{option}: must be positive, found {value}")
    for option, found, known in (("shapes", config.shapes, EVERY), ("ways", config.ways, ways)):
        if unknown := [value for value in found if value not in known]:
            raise PQMError(f"{option}: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    on_gpu = device.type == "cuda"
    usual = ways if on_gpu else [way for way in ways if way not in compiled]
    shapes: tuple[AnyShape, ...] = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B") if on_gpu else ("tiny",)
    return Chosen(
        device,
        torch.bfloat16 if on_gpu else torch.float32,
        tuple(dict.fromkeys(config.ways or usual)),
        tuple(dict.fromkeys(config.shapes or shapes)),
        config.tries or (100 if on_gpu else 1),
        tuple(ways),
    )


def compare(
    config: Options,
    chosen: Chosen,
    workload: Callable[[int], Any],
    measure: Callable[[Any, Any, Add], None],
    store: Callable[[Results], None],
) -> Results:
    """`workload(vocabulary)` makes the questions of a model, `measure(model config, questions, add)` its records.

    Calls `store` with the results so far after each `add`, and returns them all, JSON-ready: {"environment",
    "device", "dtype", "peak": {"name", "tflops"} or null, "matrix_tflops", "config", "workload", "records", "failed"}.
    """
    import torch

    from pqm_benchmarks.shared.devices import matrix_rate, peak_of
    from pqm_fast.common.environment import describe

    environment = describe()
    if chosen.device.type == "cpu" and torch.cuda.is_available():
        environment["device"] = "CPU"  # it would name the GPU
    peak = peak_of(environment["device"])
    matrix = [matrix_rate(chosen.device, chosen.dtype)]
    records: list[Record] = []
    failed: list[dict[str, str]] = []
    described: dict[str, Any] = {}

    def results() -> Results:
        rate = sum(matrix) / len(matrix)
        return {
            "environment": environment,
            "device": chosen.device.type,
            "dtype": str(chosen.dtype).removeprefix("torch."),
            "peak": peak and {"name": peak[0], "tflops": peak[1]},
            "matrix_tflops": rate,
            "matrix_tflops_rounds": matrix,
            "config": asdict(config),  # type: ignore[call-overload]
            "workload": described,
            "records": [record | _against(record, peak and peak[1], rate) for record in records],
            "failed": failed,
        }

    for shape in chosen.shapes:
        sizes = EVERY[shape]
        questions = workload(min(32_000, sizes.vocab_size))
        described |= describe_workload(questions)

        def add(found: list[Record], why: list[dict[str, str]], before: int = len(records), shape: str = shape) -> None:
            in_order = sorted(found, key=lambda record: chosen.order.index(record["way"]))
            records[before:] = [{"shape": shape} | record for record in in_order]
            failed[:] = [f for f in failed if f["shape"] != shape] + [{"shape": shape} | f for f in why]
            store(results())

        measure(sizes.config(), questions, add)
        matrix.append(matrix_rate(chosen.device, chosen.dtype))
        store(results())
    return results()


def describe_workload(questions: Any) -> dict[str, Any]:
    """{"questions", "trajectories", "tokens", "tree_ratio"}: tokens of all trajectories, and over distinct prefixes."""
    from pqm_benchmarks.work.run import prefix_tree

    tokens = sum(len(t.input_ids) for own in questions for t in own)
    return {
        "questions": len(questions),
        "trajectories": sum(map(len, questions)),
        "tokens": tokens,
        "tree_ratio": tokens / sum(prefix_tree(list(own))[0] for own in questions),
    }


def _against(record: Record, peak: float | None, matrix: float) -> dict[str, float | None]:
    return {"mfu": peak and record["tflops"] / peak, "of_matrix_rate": record["tflops"] / matrix}


def report(
    config: Options,
    name: str,
    measure: Callable[[Callable[[Results], None]], Results],
    table: Callable[[Results], str],
    draw: Callable[[Results, Path], Path],
) -> Results:
    """Measures (or reads), writes OUT/NAME.json, prints the table, draws the picture. Returns what is in the file.

    Raises:
        PQMError: a file that is there already, or files of different runs that do not go together.
    """
    folder = Path(config.out)
    if config.results:
        results = merge({path: _read(Path(path), name) for path in config.results})
    else:
        file = folder / f"{name}.json"
        if file.exists():
            raise PQMError(f"{file}: exists already; delete it or choose another --out")
        # stored after each way: a run that is cut off leaves what it had
        results = measure(lambda so_far: write_json(file, so_far))
        print(f"\nmeasurements: {file}")
    print("\n" + table(results) + "\n")
    if results["records"]:
        print(f"picture: {draw(results, folder)}")
    return results


def _read(path: Path, name: str) -> Results:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results["records"], results["matrix_tflops"], results["workload"]["tree_ratio"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PQMError(f"{path}: no {name}.json of `pqm-fast bench {name}` ({error!r})") from error
    return results
