"""`python -m pqm_benchmarks score`: scores the candidates of a Best-of-N, ours against published and transformers.

Needs torch, transformers, numpy and, for the picture, matplotlib; `run` starts it from Python, without the command
line's packages.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from pqm_benchmarks.comparison.report import Record, Results
from pqm_benchmarks.comparison.rounds import Setting, SettingSearch, over_median, take_turns
from pqm_benchmarks.comparison.run import Add, Chosen, choose, compare, report
from pqm_benchmarks.score.report import table
from pqm_benchmarks.shared.shapes import AnyShape

if TYPE_CHECKING:
    from pqm_benchmarks.score.check import Expected
    from pqm_benchmarks.score.ways.way import ScoringWay
    from pqm_benchmarks.train.ways.steady import Case
    from pqm_benchmarks.work.flops import ModelFlops, RowCounts

WayName = Literal["published", "padded", "packed", "packed_rows", "tree", "tree_rows", "compiled"]


@dataclass(frozen=True)
class ScoreBench:
    """Time scoring: packed and in trees, the published way (batches of 4), and padded batches of similar length."""

    out: str = "runs/bench-score"
    """Folder for score.json and the picture."""
    results: tuple[str, ...] = ()
    """Files score.json of earlier runs on one device: print their table, draw their picture, and measure nothing."""
    count: bool = False
    """Count operations, print their table, and measure nothing. Needs no GPU."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    shapes: tuple[AnyShape, ...] = ()
    """Models. Default: Qwen2.5-0.5B, 1.5B and 7B on a GPU, tiny on a CPU; with --count all."""
    ways: tuple[WayName, ...] = ()
    """Ways to time. Default: all; on a CPU those that compile nothing."""
    questions: int | None = None
    """Questions. Default: 6; on a CPU 2."""
    solutions: int | None = None
    """Candidates of each question. Default: 128; on a CPU 8."""
    tree_ratio: float = 1.6
    """Tokens of 22 solutions to a question over their distinct prefixes. It sets how often first steps are shared, as
    for training. The ratio of all candidates, which follows from it, is printed."""
    seconds: float = 5.0
    """Seconds of timed passes for each way in each round; at least one pass. As many seconds again for passes with
    batches made in advance."""
    rounds: int = 2
    """Every way is timed once in each round, in a new model; the difference of the rounds is the noise."""
    tries: int | None = None
    """Settings that each way tries for the fastest. Default: until smaller batches are slower; on a CPU 1."""
    seed: int = 0
    """Seed of the made-up solutions."""


def run(config: ScoreBench) -> Results:
    """Measures (or reads --results), writes OUT/score.json, prints the table, draws the picture; with --count, counts
    and prints. Returns the results.

    Raises:
        PQMError: an option that makes no sense, or the files of several runs cannot be merged.
    """
    if config.count:
        return _count(config)
    from pqm_benchmarks.score.picture import draw

    return report(config, "score", partial(measure, config), table, draw)


def measure(
    config: ScoreBench, store: Callable[[Results], None], settings: Mapping[str, Setting] | None = None
) -> Results:
    """Returns the results of `compare`, and calls `store` as `compare` does.

    A record is one way to score with one model: its setting, what it computes, `lap_seconds` and `ahead_seconds`
    (batches made in advance) of each round, rates over the median pass, the error of its scores and the most memory
    that tensors held. With `settings`, one for each way, none is searched for.
    """
    chosen = choose(config, get_args(WayName), ("compiled",), ("questions", "solutions", "rounds"))
    questions, solutions = _sizes(config, *((6, 128) if chosen.device.type == "cuda" else (2, 8)))
    config = replace(config, questions=questions, solutions=solutions)
    workload = partial(_workload, config, questions, solutions)
    return compare(config, chosen, workload, partial(_measure_shape, config, chosen, settings), store)


def _sizes(config: ScoreBench, questions: int, solutions: int) -> tuple[int, int]:
    """(questions, solutions) of the options, or these defaults."""
    return (
        questions if config.questions is None else config.questions,
        solutions if config.solutions is None else config.solutions,
    )


def _workload(config: ScoreBench, questions: int, solutions: int, vocabulary: int) -> Any:
    from pqm_benchmarks.shared.workload import make_workload

    return make_workload(questions, config.seed, config.tree_ratio, solutions=solutions, vocabulary=vocabulary)


def _count(config: ScoreBench) -> Results:
    from pqm_benchmarks.score import count
    from pqm_benchmarks.shared.shapes import SHAPES

    questions = _workload(config, *_sizes(config, 6, 128), 32_000)
    counted = count.count(questions, config.ways or get_args(WayName), config.shapes or tuple(SHAPES))
    print(count.table(counted))
    return counted


def _measure_shape(
    config: ScoreBench, chosen: Chosen, settings: Mapping[str, Setting] | None, model: Any, questions: Any, add: Add
) -> None:
    """Measures all ways for one model, and calls `add` as `take_turns` does."""
    from pqm_benchmarks.score.check import Expected
    from pqm_benchmarks.score.ways.ladder import WAYS
    from pqm_benchmarks.shared.attempts import fastest, release, try_settings
    from pqm_benchmarks.train.ways.steady import Case
    from pqm_benchmarks.work.model_flops import count_model_flops

    model_flops = count_model_flops(model)
    case = Case(model, questions, chosen.device, chosen.dtype)
    # settings are tried on half the questions, because each takes two passes
    half = case._replace(questions=questions[: -(-len(questions) // 2)])
    expected = Expected.of(*case)
    release()

    def search(name: str) -> SettingSearch:
        """Does not check the scores, because `measure` does so before it times anything."""
        if settings is not None:
            return SettingSearch([settings[name]])
        tried = try_settings(WAYS[name].families, partial(_try, WAYS[name], half), chosen.tries)
        return SettingSearch(fastest(tried), tried)

    def measure(name: str, setting: Setting) -> Round:
        return _round(WAYS[name], case, setting, expected, config.seconds)

    def record(name: str, setting: Setting, rounds: list[Round]) -> Record:
        return _record(WAYS[name], questions, setting, expected, model_flops, rounds)

    ways = {name: WAYS[name] for name in chosen.ways}
    take_turns(ways, config.rounds, "solutions", search, measure, record, add)


class Round(NamedTuple):
    """Timed passes over all solutions, in a new model."""

    seconds: list[float]
    """The time of each pass, from solutions to scores on the host."""
    ahead_seconds: list[float]
    """The same, with batches that were planned and put on the device in advance."""
    error: float
    rows: "RowCounts"
    batches: int
    slots: int
    """Tokens of all batches, with those that fill them up to one size."""
    peak_bytes: int | None


def _try(way: "ScoringWay", case: "Case", setting: Setting) -> dict[str, Any]:
    """Seconds of the second of two passes, divided by the excess."""
    from pqm_benchmarks.score.ways.way import score
    from pqm_benchmarks.shared.timing import timed

    scoring = way.build(case.config, case.device, case.dtype)
    work = partial(score, way, scoring, case.questions, setting)
    work()
    return {"seconds": timed(work, case.device) / way.excess(case.questions, setting)}


def _round(way: "ScoringWay", case: "Case", setting: Setting, expected: "Expected", seconds: float) -> Round:
    """A pass to warm up, whose scores are checked, then timed passes."""
    from pqm_benchmarks.score.ways.way import score
    from pqm_benchmarks.shared.devices import peak_bytes, watch_memory
    from pqm_benchmarks.shared.timing import laps

    scoring = way.build(case.config, case.device, case.dtype)
    work = partial(score, way, scoring, case.questions, setting)
    error = expected.check(work())
    watch_memory(case.device)
    whole, peak = laps(work, case.device, seconds), peak_bytes(case.device)
    batches = list(way.batches(case.questions, setting))
    ready = [scoring.ahead(batch) for batch in batches]
    ahead = laps(lambda: [scoring(batch) for batch in ready], case.device, seconds)
    return Round(
        seconds=whole,
        ahead_seconds=ahead,
        error=error,
        rows=way.rows(batches),
        batches=len(batches),
        slots=sum(batch.input_ids.numel() for batch in batches),
        peak_bytes=peak,
    )


def _record(
    way: "ScoringWay",
    questions: Any,
    setting: Setting,
    expected: "Expected",
    model_flops: "ModelFlops",
    rounds: list[Round],
) -> Record:
    from pqm_benchmarks.work.flops import scoring_flops

    ahead_seconds = [result.ahead_seconds for result in rounds]
    first, solutions = rounds[0], sum(map(len, questions))  # every round computes the same
    tokens, flops = first.rows.tokens, sum(scoring_flops(first.rows, model_flops).values())
    return {
        "batches": first.batches,
        "computed_tokens": tokens,
        "flops": flops,
        "flops_per_solution": flops / solutions,
        "excess": way.excess(questions, setting),
        "non_embedding": model_flops.non_embedding,
        "notes": {"filled": tokens / first.slots} if first.slots > tokens else {},
        "error": max(result.error for result in rounds),
        "error_alone": expected.error,
        **over_median("solutions", questions, rounds, tokens, flops),
        "ahead_seconds": ahead_seconds,
        "ahead_solutions_per_s": solutions / statistics.median(itertools.chain(*ahead_seconds)),
    }
