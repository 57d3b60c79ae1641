"""`pqm-fast bench train`: training steps at the sizes of real models, ours against three others, one switch at a time.

Weights and tokens are random, lengths and shared prefixes those of `workload.py`, the same trajectories for every way.
Needs torch, transformers, numpy and, for the picture, matplotlib; `run` is also how to start it from Python.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pqm_benchmarks.shapes import SHAPES, Shape, ShapeName
from pqm_benchmarks.train_report import merge, table
from pqm_fast.errors import PQMError
from pqm_fast.files import write_json

if TYPE_CHECKING:
    from pqm_benchmarks.train_step.steady import Case, Laps
    from pqm_benchmarks.train_step.way import Plan, Way
    from pqm_benchmarks.work import Products

TINY = Shape("nowhere: to see that it works", "qwen2", 64, 2, 4, 2, 128, 512, True)
TrainShape = ShapeName | Literal["tiny"]
WayName = Literal["reference", "trl", "openrlhf", "packed", "tree", "step_rows", "compiled", "all"]
OURS = ("packed", "tree", "step_rows", "compiled", "all")
SAME_LOSS = 0.02  # relative, over all trajectories of an optimizer step


@dataclass(frozen=True)
class TrainBench:
    """Time training steps: ours one switch at a time, the published algorithm, and those of TRL and OpenRLHF."""

    out: str = "runs/bench-train"
    """Folder for train.json and the picture."""
    results: tuple[str, ...] = ()
    """Files train.json of earlier runs on one device: print their table, draw their picture, and measure nothing."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    shapes: tuple[TrainShape, ...] = ()
    """Models. Default: Qwen2.5-0.5B, 1.5B and 7B on a GPU, tiny on a CPU."""
    ways: tuple[WayName, ...] = ()
    """What to time. Default: everything; on a CPU nothing that compiles."""
    questions: int = 6
    """Questions in an optimizer step, with 22 solutions each."""
    steps: int = 3
    """Optimizer steps in a pass over all trajectories."""
    tree_ratio: float = 1.6
    """Tokens of all solutions over distinct prefixes of them."""
    seconds: float = 5.0
    """Time for passes, of each way in each round; one pass at least."""
    rounds: int = 2
    """Every way is timed once in each round, in a model made anew: their difference is the noise."""
    tries: int | None = None
    """Settings of each way that are tried for the fastest. Default: as many as it takes; on a CPU 1."""
    seed: int = 0
    """Of the made-up trajectories."""


def run(config: TrainBench) -> dict[str, Any]:
    """Measures (or reads), writes OUT/train.json, prints the table, draws the picture. Returns what is in the file.

    Raises:
        PQMError: an option that makes no sense, or files of different runs that do not go together.
    """
    from pqm_benchmarks.train_picture import draw

    folder = Path(config.out)
    if config.results:
        results = merge({path: _read(Path(path)) for path in config.results})
    else:
        if (folder / "train.json").exists():
            raise PQMError(f"{folder / 'train.json'}: exists already; delete it or choose another --out")
        # stored after each way: a run that is cut off leaves what it had
        results = measure(config, lambda so_far: write_json(folder / "train.json", so_far))
        print(f"\nmeasurements: {folder / 'train.json'}")
    print("\n" + table(results) + "\n")
    if results["records"]:
        print(f"picture: {draw(results, folder)}")
    return results


def measure(config: TrainBench, store: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Calls `store` with the results so far after each way, and returns them all, JSON-ready: {"environment",
    "device", "dtype", "peak": {"name", "tflops"} or null, "matrix_tflops", "config", "workload", "records", "failed"}.

    A record is one way to train one model: its setting, what it computes, `lap_seconds` of each round, rates over
    the median pass, and the most memory that tensors held.
    """
    import torch

    from pqm_benchmarks.train_step.steady import matrix_rate, peak_of
    from pqm_benchmarks.workload import make_workload
    from pqm_fast.environment import describe

    device, names, shapes = _chosen(config)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    environment = describe()
    if device.type == "cpu" and torch.cuda.is_available():
        environment["device"] = "CPU"  # it would name the GPU
    peak = peak_of(environment["device"])
    matrix = [matrix_rate(device, dtype)]
    records: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    workload: dict[str, Any] = {}

    def results() -> dict[str, Any]:
        rate = sum(matrix) / len(matrix)
        return {
            "environment": environment,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "peak": peak and {"name": peak[0], "tflops": peak[1]},
            "matrix_tflops": rate,
            "matrix_tflops_rounds": matrix,
            "config": asdict(config),
            "workload": workload,
            "records": [record | _against(record, peak and peak[1], rate) for record in records],
            "failed": failed,
        }

    for shape in shapes:
        sizes = (SHAPES | {"tiny": TINY})[shape]
        vocabulary = min(32_000, sizes.vocab_size)
        questions = make_workload(
            config.questions * config.steps, config.seed, config.tree_ratio, vocabulary=vocabulary
        )
        workload |= _describe(questions)
        before = len(records)

        def add(
            found: list[dict[str, Any]], why: list[dict[str, str]], before: int = before, shape: str = shape
        ) -> None:
            records[before:] = [{"shape": shape} | record for record in found]
            failed[:] = [f for f in failed if f["shape"] != shape] + [{"shape": shape} | f for f in why]
            store(results())

        _measure_shape(config, names, sizes.config(), questions, device, dtype, add)
        matrix.append(matrix_rate(device, dtype))
        store(results())
    return results()


def _measure_shape(
    config: TrainBench,
    names: tuple[str, ...],
    model: Any,
    questions: Any,
    device: Any,
    dtype: Any,
    add: Callable[..., None],
) -> None:
    """Rounds in which the ways take turns; in the first, each looks for its setting before. Calls `add` with records
    and failures after every way."""
    from pqm_benchmarks.train_step.ladder import WAYS
    from pqm_benchmarks.train_step.steady import Case, attempt, fastest, run_laps, try_settings
    from pqm_benchmarks.work import count_products

    products = count_products(model)
    whole = Case(model, questions, device, dtype)
    one_step = Case(model, questions[: config.questions], device, dtype)
    tries = config.tries or (1 if device.type == "cpu" else 100)
    tried: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    records: dict[str, dict[str, Any]] = {}
    for name in names * config.rounds:
        way = WAYS[name]
        if name not in tried:
            tried[name] = try_settings(way, one_step, tries)
            for t in tried[name]:
                found = t["why"] or f"{t['seconds']:.3f} s"
                print(f"{way.title}, {t['setting']}: {found}", flush=True)
            if why := _why_not(name, tried):
                failed[name] = why
        settings = [records[name]["setting"]] if name in records else fastest(tried[name])
        for setting in settings if name not in failed else ():
            plan = way.plan(questions, config.steps, setting, device)
            laps, why = attempt(partial(run_laps, way, whole, setting, plan, config.seconds))
            if laps:
                own = records.setdefault(name, _new_record(name, way, setting, tried[name], plan, products))
                _add_round(own, laps, whole)
                print(f"{way.title}: {own['trajectories_per_s']:,.1f} trajectories/s", flush=True)
                break  # else the next best: the fastest may not have the memory for all trajectories
        else:
            failed.setdefault(name, str(why))
        add(list(records.values()), [{"way": way, "why": why} for way, why in failed.items()])


def _why_not(name: str, tried: dict[str, list[dict[str, Any]]]) -> str | None:
    """Why a way is not timed: no setting ran, or its loss is not that of our other ways."""
    losses = {way: [t["loss"] for t in tried[way] if t["seconds"]] for way in tried}
    if not losses[name]:
        return "; ".join(dict.fromkeys(t["why"] for t in tried[name]))
    [first, *_] = [losses[way][0] for way in OURS if losses.get(way)] or losses[name]
    wrong = [loss for loss in losses[name] if not abs(loss - first) <= SAME_LOSS * abs(first)]
    if name in OURS and wrong:
        return f"its loss is {wrong[0]}, where {first} was expected; nothing is timed until that is mended"
    return None


def _new_record(
    name: str, way: "Way", setting: dict[str, Any], tried: list[dict[str, Any]], plan: "Plan", products: "Products"
) -> dict[str, Any]:
    return {
        "way": name,
        "title": way.title,
        "source": way.source,
        "precision": way.precision,
        "setting": setting,
        "tried": tried,
        "optimizer_steps": len(plan.steps),
        "micro_batches": sum(map(len, plan.steps)),
        "computed_tokens": plan.layout.tokens,
        "flops": plan.flops(products),
        "excess": plan.excess,
        "non_embedding": products.non_embedding,
        "notes": plan.notes,
        "lap_seconds": [],
        "peak_bytes": None,
    }


def _add_round(record: dict[str, Any], laps: "Laps", case: "Case") -> None:
    """One more round of passes, and the rates over the median of all."""
    import statistics

    from pqm_benchmarks.train_step.way import flat

    record["lap_seconds"].append(laps.seconds)
    seconds = statistics.median(lap for own in record["lap_seconds"] for lap in own)
    trajectories = flat(case.questions)
    tokens = sum(len(t.input_ids) for t in trajectories)
    if laps.peak_bytes is not None:
        record["peak_bytes"] = max(laps.peak_bytes, record["peak_bytes"] or 0)
    record |= {
        "first_loss": laps.loss,
        "trajectories_per_s": len(trajectories) / seconds,
        "real_tokens_per_s": tokens / seconds,
        "computed_tokens_per_s": record["computed_tokens"] / seconds,
        "tflops": record["flops"] / seconds / 1e12,
    }


def _against(record: dict[str, Any], peak: float | None, matrix: float) -> dict[str, float | None]:
    return {"mfu": peak and record["tflops"] / peak, "of_matrix_rate": record["tflops"] / matrix}


def _describe(questions: Any) -> dict[str, Any]:
    from pqm_benchmarks.train_step.way import flat
    from pqm_benchmarks.work import prefix_tree

    trajectories = flat(questions)
    tokens = sum(len(t.input_ids) for t in trajectories)
    return {
        "questions": len(questions),
        "trajectories": len(trajectories),
        "tokens": tokens,
        "tree_ratio": tokens / sum(prefix_tree(list(own))[0] for own in questions),
    }


def _chosen(config: TrainBench) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """Device, ways and models: those of the options, or what the device is measured with."""
    import torch

    name = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cuda", "cpu") or (name == "cuda" and not torch.cuda.is_available()):
        raise PQMError(f"device: expected cpu, or cuda where there is one, found {config.device!r}")
    for option in ("questions", "steps", "rounds"):
        if getattr(config, option) < 1:
            raise PQMError(f"{option}: must be positive, found {getattr(config, option)}")
    if config.tries is not None and config.tries < 1:
        raise PQMError(f"tries: must be positive, found {config.tries}")
    for option, found, known in (
        ("shapes", config.shapes, (*SHAPES, "tiny")),
        ("ways", config.ways, get_args(WayName)),
    ):
        if unknown := [value for value in found if value not in known]:
            raise PQMError(f"{option}: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    on_gpu = name == "cuda"
    usual = get_args(WayName) if on_gpu else tuple(w for w in get_args(WayName) if w not in ("compiled", "all"))
    shapes = config.shapes or (("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B") if on_gpu else ("tiny",))
    return torch.device(name), tuple(dict.fromkeys(config.ways or usual)), tuple(dict.fromkeys(shapes))


def _read(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results["records"], results["matrix_tflops"], results["workload"]["tree_ratio"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PQMError(f"{path}: no train.json of `pqm-fast bench train` ({error!r})") from error
    return results
