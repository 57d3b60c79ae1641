"""A comparison of several ways to do one thing: its options, the loop over models, the file with the results.

Weights and tokens are random. Lengths and shared prefixes are those of `shared/workload.py`, the same for every way.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pqm_benchmarks.comparison.report import Record, Results, merge
from pqm_benchmarks.shared.shapes import ALL_SHAPES, AnyShape
from pqm_fast.common.files import write_json
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    import torch

Add = Callable[[list[Record], list[dict[str, str]]], None]
"""Takes the records of a model so far, and {"way", "why"} for each way that failed."""


class Options(Protocol):
    """The options of every comparison, which are a frozen dataclass."""

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
    """Device, ways and models: from the options, or by default those for the device."""

    device: "torch.device"
    dtype: "torch.dtype"
    ways: tuple[str, ...]
    shapes: tuple[AnyShape, ...]
    tries: int
    """The most settings that are tried for each way."""
    order: tuple[str, ...]
    """All ways in the order of the results: third-party ways, then ours, with one switch more each."""


def choose(config: Options, ways: Sequence[str], compiled: Sequence[str], positive: Sequence[str]) -> Chosen:
    """Checks the options and sets the defaults. `ways` are all that exist, `compiled` those that are left out on a CPU
    by default, and `positive` the options that must be positive.

    Raises:
        PQMError: an option that makes no sense.
    """
    import torch

    from pqm_benchmarks.shared.devices import pick

    device = pick(config.device)
    for option in (*positive, "tries"):
        value = getattr(config, option)
        if value is not None and value < 1:
            raise PQMError(f"{option}: must be positive, found {value}")
    for option, values, known in (("shapes", config.shapes, ALL_SHAPES), ("ways", config.ways, ways)):
        if unknown := [value for value in values if value not in known]:
            raise PQMError(f"{option}: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    on_gpu = device.type == "cuda"
    default_ways = ways if on_gpu else [way for way in ways if way not in compiled]
    default_shapes: tuple[AnyShape, ...] = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B") if on_gpu else ("tiny",)
    return Chosen(
        device=device,
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        ways=tuple(dict.fromkeys(config.ways or default_ways)),
        shapes=tuple(dict.fromkeys(config.shapes or default_shapes)),
        tries=config.tries or (100 if on_gpu else 1),
        order=tuple(ways),
    )


def compare(
    config: Options,
    chosen: Chosen,
    workload: Callable[[int], Any],
    measure: Callable[[Any, Any, Add], None],
    store: Callable[[Results], None],
) -> Results:
    """Measures one model after the other: `workload(vocabulary)` makes its questions, and `measure(model config,
    questions, add)` its records.

    Calls `store` with the results so far after each `add`, and returns all of them, ready for JSON: {"environment",
    "device", "dtype", "peak": {"name", "tflops"} or null, "matrix_tflops", "matrix_tflops_rounds", "config",
    "workload", "records", "failed"}.
    """
    from pqm_benchmarks.shared.devices import environment_of, matrix_rate, peak_of

    environment = environment_of(chosen.device)
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
            "records": [record | _utilisation(record, peak and peak[1], rate) for record in records],
            "failed": failed,
        }

    for shape in chosen.shapes:
        sizes = ALL_SHAPES[shape]
        questions = workload(min(32_000, sizes.vocab_size))
        described |= describe_workload(questions)

        def add(
            of_shape: list[Record], failures: list[dict[str, str]], before: int = len(records), shape: str = shape
        ) -> None:
            in_order = sorted(of_shape, key=lambda record: chosen.order.index(record["way"]))
            records[before:] = [{"shape": shape} | record for record in in_order]
            failed[:] = [f for f in failed if f["shape"] != shape] + [{"shape": shape} | f for f in failures]
            store(results())

        measure(sizes.config(), questions, add)
        matrix.append(matrix_rate(chosen.device, chosen.dtype))
        store(results())
    return results()


def describe_workload(questions: Any) -> dict[str, Any]:
    """{"questions", "trajectories", "tokens", "tree_ratio"}: tokens are those of all trajectories, and the ratio is
    tokens over distinct prefixes."""
    from pqm_benchmarks.shared.prefix_tree import tree_ratio

    return {
        "questions": len(questions),
        "trajectories": sum(map(len, questions)),
        "tokens": sum(len(t.input_ids) for solutions in questions for t in solutions),
        "tree_ratio": tree_ratio(questions),
    }


def _utilisation(record: Record, peak: float | None, matrix: float) -> dict[str, float | None]:
    return {"mfu": peak and record["tflops"] / peak, "of_matrix_rate": record["tflops"] / matrix}


def report(
    config: Options,
    name: str,
    measure: Callable[[Callable[[Results], None]], Results],
    table: Callable[[Results], str],
    draw: Callable[[Results, Path], Path],
) -> Results:
    """Measures (or reads --results), writes OUT/NAME.json, prints the table, draws the picture. Returns the results.

    Raises:
        PQMError: the file exists already, or the files of several runs cannot be merged.
    """
    folder = Path(config.out)
    if config.results:
        results = merge({path: _read(Path(path), name) for path in config.results})
    else:
        file = folder / f"{name}.json"
        if file.exists():
            raise PQMError(f"{file}: exists already; delete it or choose another --out")
        # stored after each way, so that a run that is cut off leaves its results so far
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
        raise PQMError(f"{path}: is not a {name}.json of `python -m pqm_benchmarks {name}` ({error!r})") from error
    return results
