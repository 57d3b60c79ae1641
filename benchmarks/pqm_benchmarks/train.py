"""`pqm-fast bench train`: training steps at the sizes of real models, ours against three others, one switch at a time.

Needs torch, transformers, numpy and, for the picture, matplotlib; `run` is also how to start it from Python.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from pqm_benchmarks.comparison import Add, AnyShape, Chosen, Results, choose, compare, report
from pqm_benchmarks.train_report import table

if TYPE_CHECKING:
    from pqm_benchmarks.train_step.steady import Case, Laps
    from pqm_benchmarks.train_step.way import Plan, Way
    from pqm_benchmarks.work import Products

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
    shapes: tuple[AnyShape, ...] = ()
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


def run(config: TrainBench) -> Results:
    """Measures (or reads), writes OUT/train.json, prints the table, draws the picture. Returns what is in the file.

    Raises:
        PQMError: an option that makes no sense, or files of different runs that do not go together.
    """
    from pqm_benchmarks.train_picture import draw

    return report(config, "train", partial(measure, config), table, draw)


def measure(config: TrainBench, store: Callable[[Results], None]) -> Results:
    """As `compare` has it.

    A record is one way to train one model: its setting, what it computes, `lap_seconds` of each round, rates over
    the median pass, and the most memory that tensors held.
    """
    from pqm_benchmarks.workload import make_workload

    chosen = choose(config, get_args(WayName), ("compiled", "all"), ("questions", "steps", "rounds"))
    count = config.questions * config.steps

    def workload(vocabulary: int) -> Any:
        return make_workload(count, config.seed, config.tree_ratio, vocabulary=vocabulary)

    return compare(config, chosen, workload, partial(_measure_shape, config, chosen), store)


def _measure_shape(config: TrainBench, chosen: Chosen, model: Any, questions: Any, add: Add) -> None:
    """Rounds in which the ways take turns; in the first, each looks for its setting before. Calls `add` with records
    and failures after every way."""
    from pqm_benchmarks.attempts import attempt, fastest
    from pqm_benchmarks.train_step.ladder import WAYS
    from pqm_benchmarks.train_step.steady import Case, run_laps, try_settings
    from pqm_benchmarks.work import count_products

    products = count_products(model)
    whole = Case(model, questions, chosen.device, chosen.dtype)
    one_step = Case(model, questions[: config.questions], chosen.device, chosen.dtype)
    tried: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    records: dict[str, dict[str, Any]] = {}
    for name in chosen.ways * config.rounds:
        way = WAYS[name]
        if name not in tried:
            tried[name] = try_settings(way, one_step, chosen.tries)
            for t in tried[name]:
                found = t["why"] or f"{t['seconds']:.3f} s"
                print(f"{way.title}, {t['setting']}: {found}", flush=True)
            if why := _why_not(name, tried):
                failed[name] = why
        settings = [records[name]["setting"]] if name in records else fastest(tried[name])
        for setting in settings if name not in failed else ():
            plan = way.plan(questions, config.steps, setting, chosen.device)
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
