"""`pqm-fast bench score`: Q-values of the candidates of a Best-of-N, ours against the published way and transformers'.

Needs torch, transformers, numpy and, for the picture, matplotlib; `run` is also how to start it from Python.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from pqm_benchmarks.comparison import Add, AnyShape, Chosen, Results, choose, compare, report
from pqm_benchmarks.score_report import table

if TYPE_CHECKING:
    from pqm_benchmarks.score_check import Expected
    from pqm_benchmarks.score_ways import Way
    from pqm_benchmarks.train_step.steady import Case
    from pqm_benchmarks.work import Layout, Products

WayName = Literal["published", "padded", "packed", "packed_rows", "tree", "tree_rows", "compiled"]


@dataclass(frozen=True)
class ScoreBench:
    """Time scoring: packed and in trees, the published way (batches of 4), and padded batches of like length."""

    out: str = "runs/bench-score"
    """Folder for score.json and the picture."""
    results: tuple[str, ...] = ()
    """Files score.json of earlier runs on one device: print their table, draw their picture, and measure nothing."""
    count: bool = False
    """Count operations, print that table, and measure nothing: needs no GPU."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    shapes: tuple[AnyShape, ...] = ()
    """Models. Default: Qwen2.5-0.5B, 1.5B and 7B on a GPU, tiny on a CPU; all to count."""
    ways: tuple[WayName, ...] = ()
    """What to time. Default: everything; on a CPU nothing that compiles."""
    questions: int | None = None
    """Questions. Default: 6; on a CPU 2."""
    solutions: int | None = None
    """Candidates of each question. Default: 128; on a CPU 8."""
    tree_ratio: float = 1.6
    """Tokens of 22 solutions to a question over distinct prefixes of them: it says how often first steps are shared,
    as in `bench train`. What it comes to with so many candidates is printed."""
    seconds: float = 5.0
    """Time for passes, of each way in each round; one pass at least. As much again for passes with batches made
    before."""
    rounds: int = 2
    """Every way is timed once in each round, in a model made anew: their difference is the noise."""
    tries: int | None = None
    """Settings of each way that are tried for the fastest. Default: as many as it takes; on a CPU 1."""
    seed: int = 0
    """Of the made-up solutions."""


def run(config: ScoreBench) -> Results:
    """Measures (or reads, or counts), writes OUT/score.json, prints the table, draws the picture. Returns what is in
    the file, or what was counted.

    Raises:
        PQMError: an option that makes no sense, or files of different runs that do not go together.
    """
    if config.count:
        return _count(config)
    from pqm_benchmarks.score_picture import draw

    return report(config, "score", partial(measure, config), table, draw)


def measure(config: ScoreBench, store: Callable[[Results], None]) -> Results:
    """As `compare` has it.

    A record is one way to score with one model: its setting, what it computes, `lap_seconds` and `ahead_seconds`
    (batches made before) of each round, rates over the median pass, the error of its scores and the most memory that
    tensors held.
    """
    chosen = choose(config, get_args(WayName), ("compiled",), ("questions", "solutions", "rounds"))
    questions, solutions = _sizes(config, *((6, 128) if chosen.device.type == "cuda" else (2, 8)))
    config = replace(config, questions=questions, solutions=solutions)
    workload = partial(_workload, config, questions, solutions)
    return compare(config, chosen, workload, partial(_measure_shape, config, chosen), store)


def _sizes(config: ScoreBench, questions: int, solutions: int) -> tuple[int, int]:
    """These, where nothing was given."""
    return (
        questions if config.questions is None else config.questions,
        solutions if config.solutions is None else config.solutions,
    )


def _workload(config: ScoreBench, questions: int, solutions: int, vocabulary: int) -> Any:
    from pqm_benchmarks.workload import make_workload

    return make_workload(questions, config.seed, config.tree_ratio, solutions=solutions, vocabulary=vocabulary)


def _count(config: ScoreBench) -> Results:
    from pqm_benchmarks import score_work
    from pqm_benchmarks.shapes import SHAPES

    made = _workload(config, *_sizes(config, 6, 128), 32_000)
    counted = score_work.count(made, config.ways or get_args(WayName), config.shapes or tuple(SHAPES))
    print(score_work.table(counted))
    return counted


def _measure_shape(config: ScoreBench, chosen: Chosen, model: Any, questions: Any, add: Add) -> None:
    """Rounds in which the ways take turns; in the first, each looks for its setting before. Calls `add` with records
    and failures after every way."""
    from pqm_benchmarks.attempts import attempt, fastest, release, try_settings
    from pqm_benchmarks.score_check import Expected
    from pqm_benchmarks.score_ways import WAYS
    from pqm_benchmarks.train_step.steady import Case
    from pqm_benchmarks.work import count_products

    products = count_products(model)
    case = Case(model, questions, chosen.device, chosen.dtype)
    expected = Expected.of(*case)
    release()
    tried: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    records: dict[str, dict[str, Any]] = {}
    for name in chosen.ways * config.rounds:
        way = WAYS[name]
        if name not in tried:
            # of half the questions, for every setting takes two passes
            half = case._replace(questions=questions[: -(-len(questions) // 2)])
            tried[name] = try_settings(way.families, partial(_try, way, half), chosen.tries)
            for t in tried[name]:
                found = t["why"] or f"{t['seconds']:.3f} s"
                print(f"{way.title}, {t['setting']}: {found}", flush=True)
        settings = [records[name]["setting"]] if name in records else fastest(tried[name])
        why: str | None = "; ".join(dict.fromkeys(t["why"] for t in tried[name] if t["why"]))
        for setting in settings if name not in failed else ():
            found, why = attempt(partial(_round, way, case, setting, expected, config.seconds))
            if found:
                own = records.setdefault(name, _new_record(name, way, setting, tried[name], questions, found, products))
                _add_round(own, found, case, expected)
                print(f"{way.title}: {own['solutions_per_s']:,.1f} solutions/s", flush=True)
                break  # else the next best: the fastest may not have the memory for all solutions
        else:
            failed.setdefault(name, str(why))
        add(list(records.values()), [{"way": way, "why": why} for way, why in failed.items()])


class Round(NamedTuple):
    """Passes over all solutions, in a model made anew."""

    seconds: list[float]
    """From solutions to scores on the host."""
    ahead_seconds: list[float]
    """With batches planned and on the device before."""
    error: float
    layout: "Layout"
    batches: int
    slots: int
    """Tokens of all batches, with what fills them up to one size."""
    peak_bytes: int | None


def _try(way: "Way", case: "Case", setting: dict[str, Any]) -> dict[str, Any]:
    """The second of two passes, over the excess."""
    from pqm_benchmarks.devices import timed
    from pqm_benchmarks.score_ways import score

    scoring = way.build(case.config, case.device, case.dtype)
    work = partial(score, way, scoring, case.questions, setting)
    work()
    return {"seconds": timed(work, case.device) / way.excess(case.questions, setting)}


def _round(way: "Way", case: "Case", setting: dict[str, Any], expected: "Expected", seconds: float) -> Round:
    """A pass to warm up, whose scores must be right, then passes that are timed."""
    from pqm_benchmarks.devices import laps, peak_bytes, watch_memory
    from pqm_benchmarks.score_ways import score

    scoring = way.build(case.config, case.device, case.dtype)
    work = partial(score, way, scoring, case.questions, setting)
    error = expected.hold(work())
    watch_memory(case.device)
    whole, peak = laps(work, case.device, seconds), peak_bytes(case.device)
    batches = list(way.batches(case.questions, setting))
    ready = [scoring.ahead(batch) for batch in batches]
    ahead = laps(lambda: [scoring(batch) for batch in ready], case.device, seconds)
    slots = sum(batch.input_ids.numel() for batch in batches)
    return Round(whole, ahead, error, way.layout(batches), len(batches), slots, peak)


def _new_record(
    name: str,
    way: "Way",
    setting: dict[str, Any],
    tried: list[dict[str, Any]],
    questions: Any,
    found: Round,
    products: "Products",
) -> dict[str, Any]:
    from pqm_benchmarks.score_work import forward

    return {
        "way": name,
        "title": way.title,
        "source": way.source,
        "setting": setting,
        "tried": tried,
        "batches": found.batches,
        "computed_tokens": found.layout.tokens,
        "flops": sum(forward(found.layout, products).values()),
        "excess": way.excess(questions, setting),
        "non_embedding": products.non_embedding,
        "error": 0.0,
        "notes": {"filled": found.layout.tokens / found.slots} if found.slots > found.layout.tokens else {},
        "lap_seconds": [],
        "ahead_seconds": [],
        "peak_bytes": None,
    }


def _add_round(record: dict[str, Any], found: Round, case: "Case", expected: "Expected") -> None:
    """One more round of passes, and the rates over the median of all."""
    record["lap_seconds"].append(found.seconds)
    record["ahead_seconds"].append(found.ahead_seconds)
    seconds, ahead = (
        statistics.median(lap for own in record[kind] for lap in own) for kind in ("lap_seconds", "ahead_seconds")
    )
    solutions = sum(map(len, case.questions))
    tokens = sum(len(t.input_ids) for own in case.questions for t in own)
    if found.peak_bytes is not None:
        record["peak_bytes"] = max(found.peak_bytes, record["peak_bytes"] or 0)
    record |= {
        "error": max(found.error, record["error"]),
        "error_alone": expected.error,
        "solutions_per_s": solutions / seconds,
        "ahead_solutions_per_s": solutions / ahead,
        "real_tokens_per_s": tokens / seconds,
        "computed_tokens_per_s": record["computed_tokens"] / seconds,
        "flops_per_solution": record["flops"] / solutions,
        "tflops": record["flops"] / seconds / 1e12,
    }
