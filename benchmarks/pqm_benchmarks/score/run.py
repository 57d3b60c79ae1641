"""`pqm-fast bench score`: Q-values of the candidates of a Best-of-N, ours against the published way and transformers'.

Needs torch, transformers, numpy and, for the picture, matplotlib; `run` is also how to start it from Python.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from pqm_benchmarks.score.report import table
from pqm_benchmarks.shared.comparison import Add, Chosen, Record, Results, choose, compare, report
from pqm_benchmarks.shared.comparison_rounds import Found, Setting, over_median, take_turns
from pqm_benchmarks.shared.shapes import AnyShape

if TYPE_CHECKING:
    from pqm_benchmarks.score.check import Expected
    from pqm_benchmarks.score.ways import Way
    from pqm_benchmarks.train.ways.steady import Case
    from pqm_benchmarks.work.run import Layout, Products

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
    from pqm_benchmarks.score.picture import draw

    return report(config, "score", partial(measure, config), table, draw)


def measure(
    config: ScoreBench, store: Callable[[Results], None], settings: Mapping[str, Setting] | None = None
) -> Results:
    """As `compare` has it.

    A record is one way to score with one model: its setting, what it computes, `lap_seconds` and `ahead_seconds`
    (batches made before) of each round, rates over the median pass, the error of its scores and the most memory that
    tensors held. With `settings` of each way none is looked for.
    """
    chosen = choose(config, get_args(WayName), ("compiled",), ("questions", "solutions", "rounds"))
    questions, solutions = _sizes(config, *((6, 128) if chosen.device.type == "cuda" else (2, 8)))
    config = replace(config, questions=questions, solutions=solutions)
    workload = partial(_workload, config, questions, solutions)
    return compare(config, chosen, workload, partial(_measure_shape, config, chosen, settings), store)


def _sizes(config: ScoreBench, questions: int, solutions: int) -> tuple[int, int]:
    """These, where nothing was given."""
    return (
        questions if config.questions is None else config.questions,
        solutions if config.solutions is None else config.solutions,
    )


def _workload(config: ScoreBench, questions: int, solutions: int, vocabulary: int) -> Any:
    from pqm_benchmarks.shared.workload import make_workload

    return make_workload(questions, config.seed, config.tree_ratio, solutions=solutions, vocabulary=vocabulary)


def _count(config: ScoreBench) -> Results:
    from pqm_benchmarks.score import work as score_work
    from pqm_benchmarks.shared.shapes import SHAPES

    made = _workload(config, *_sizes(config, 6, 128), 32_000)
    counted = score_work.count(made, config.ways or get_args(WayName), config.shapes or tuple(SHAPES))
    print(score_work.table(counted))
    return counted


def _measure_shape(
    config: ScoreBench, chosen: Chosen, given: Mapping[str, Setting] | None, model: Any, questions: Any, add: Add
) -> None:
    """The records of one model, as `take_turns` has it."""
    from pqm_benchmarks.score.check import Expected
    from pqm_benchmarks.score.ways import WAYS
    from pqm_benchmarks.shared.attempts import fastest, release, try_settings
    from pqm_benchmarks.train.ways.steady import Case
    from pqm_benchmarks.work.run import count_products

    products = count_products(model)
    case = Case(model, questions, chosen.device, chosen.dtype)
    # of half the questions, for every setting takes two passes
    half = case._replace(questions=questions[: -(-len(questions) // 2)])
    expected = Expected.of(*case)
    release()

    def search(name: str) -> Found:
        """Wrong scores are found by `measure`, before it times anything."""
        if given is not None:
            return Found([given[name]])
        tried = try_settings(WAYS[name].families, partial(_try, WAYS[name], half), chosen.tries)
        return Found(fastest(tried), tried)

    def measure(name: str, setting: Setting) -> Round:
        return _round(WAYS[name], case, setting, expected, config.seconds)

    def record(name: str, setting: Setting, rounds: list[Round]) -> Record:
        return _record(WAYS[name], questions, setting, expected, products, rounds)

    ways = {name: WAYS[name] for name in chosen.ways}
    take_turns(ways, config.rounds, "solutions", search, measure, record, add)


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


def _try(way: "Way", case: "Case", setting: Setting) -> dict[str, Any]:
    """The second of two passes, over the excess."""
    from pqm_benchmarks.score.ways import score
    from pqm_benchmarks.shared.devices import timed

    scoring = way.build(case.config, case.device, case.dtype)
    work = partial(score, way, scoring, case.questions, setting)
    work()
    return {"seconds": timed(work, case.device) / way.excess(case.questions, setting)}


def _round(way: "Way", case: "Case", setting: Setting, expected: "Expected", seconds: float) -> Round:
    """A pass to warm up, whose scores must be right, then passes that are timed."""
    from pqm_benchmarks.score.ways import score
    from pqm_benchmarks.shared.devices import laps, peak_bytes, watch_memory

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


def _record(
    way: "Way", questions: Any, setting: Setting, expected: "Expected", products: "Products", rounds: list[Round]
) -> Record:
    from pqm_benchmarks.score.work import forward

    first, solutions = rounds[0], sum(map(len, questions))  # what is computed is the same in every round
    tokens, flops = first.layout.tokens, sum(forward(first.layout, products).values())
    return {
        "batches": first.batches,
        "computed_tokens": tokens,
        "flops": flops,
        "flops_per_solution": flops / solutions,
        "excess": way.excess(questions, setting),
        "non_embedding": products.non_embedding,
        "notes": {"filled": tokens / first.slots} if first.slots > tokens else {},
        "error": max(own.error for own in rounds),
        "error_alone": expected.error,
        **over_median("solutions", questions, rounds, tokens, flops),
        "ahead_seconds": [own.ahead_seconds for own in rounds],
        "ahead_solutions_per_s": solutions / statistics.median(lap for own in rounds for lap in own.ahead_seconds),
    }
