"""`python -m pqm_benchmarks train`: training steps at the sizes of real models, ours against three others.

Needs torch, transformers, numpy and, for the picture, matplotlib; `run` starts it from Python, without the command
line's packages.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from pqm_benchmarks.comparison.report import Record, Results
from pqm_benchmarks.comparison.rounds import Setting, SettingSearch, over_median, take_turns
from pqm_benchmarks.comparison.run import Add, Chosen, choose, compare, report
from pqm_benchmarks.shared.shapes import AnyShape
from pqm_benchmarks.train.report import ALL_SWITCHES, OURS, table
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    from pqm_benchmarks.train.ways.steady import Case, Laps
    from pqm_benchmarks.train.ways.way import TrainingWay
    from pqm_benchmarks.work.flops import ModelFlops

WayName = Literal["reference", "trl", "openrlhf", "packed", "tree", "step_rows", "compiled", "all"]
SAME_LOSS = 0.02  # relative, over all trajectories of an optimizer step


@dataclass(frozen=True)
class TrainBench:
    """Time training steps: ours with one switch more at a time, the published algorithm, TRL's and OpenRLHF's."""

    out: str = "runs/bench-train"
    """Folder for train.json and the picture."""
    results: tuple[str, ...] = ()
    """Files train.json of earlier runs on one device: print their table, draw their picture, and measure nothing."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    shapes: tuple[AnyShape, ...] = ()
    """Models. Default: Qwen2.5-0.5B, 1.5B and 7B on a GPU, tiny on a CPU."""
    ways: tuple[WayName, ...] = ()
    """Ways to time. Default: all; on a CPU those that compile nothing."""
    questions: int = 6
    """Questions in an optimizer step, with 22 solutions each."""
    steps: int = 3
    """Optimizer steps in a pass over all trajectories."""
    tree_ratio: float = 1.6
    """Tokens of all solutions over their distinct prefixes."""
    seconds: float = 5.0
    """Seconds of timed passes for each way in each round; at least one pass."""
    rounds: int = 2
    """Every way is timed once in each round, in a new model; the difference of the rounds is the noise."""
    tries: int | None = None
    """Settings that each way tries for the fastest. Default: until smaller batches are slower; on a CPU 1."""
    seed: int = 0
    """Seed of the made-up trajectories."""


def run(config: TrainBench) -> Results:
    """Measures (or reads --results), writes OUT/train.json, prints the table, draws the picture. Returns the results.

    Raises:
        PQMError: an option that makes no sense, or the files of several runs cannot be merged.
    """
    from pqm_benchmarks.train.picture import draw

    return report(config, "train", partial(measure, config), table, draw)


def measure(
    config: TrainBench, store: Callable[[Results], None], settings: Mapping[str, Setting] | None = None
) -> Results:
    """Returns the results of `compare`, and calls `store` as `compare` does.

    A record is one way to train one model: its setting, what it computes, `lap_seconds` of each round, rates over
    the median pass, and the most memory that tensors held. With `settings`, one for each way, none is searched for;
    a pass is then one optimizer step, so that losses can be compared.

    Raises:
        PQMError: an option that makes no sense.
    """
    from pqm_benchmarks.shared.workload import make_workload

    if settings is not None and config.steps != 1:
        raise PQMError(f"steps: must be 1 where settings are given, found {config.steps}")
    chosen = choose(config, get_args(WayName), ("compiled", "all"), ("questions", "steps", "rounds"))
    count = config.questions * config.steps

    def workload(vocabulary: int) -> Any:
        return make_workload(count, config.seed, config.tree_ratio, vocabulary=vocabulary)

    return compare(config, chosen, workload, partial(_measure_shape, config, chosen, settings), store)


def _measure_shape(
    config: TrainBench, chosen: Chosen, settings: Mapping[str, Setting] | None, model: Any, questions: Any, add: Add
) -> None:
    """Measures all ways for one model, and calls `add` as `take_turns` does."""
    from pqm_benchmarks.shared.attempts import fastest
    from pqm_benchmarks.train.ways.ladder import WAYS
    from pqm_benchmarks.train.ways.steady import Case, try_settings
    from pqm_benchmarks.work.model_flops import count_model_flops

    model_flops = count_model_flops(model)
    whole = Case(model, questions, chosen.device, chosen.dtype)
    one_step = whole._replace(questions=questions[: config.questions])
    losses: dict[str, list[float]] = {}

    def search(name: str) -> SettingSearch:
        if settings is not None:
            return SettingSearch([settings[name]])
        tried = try_settings(WAYS[name], one_step, chosen.tries)
        losses[name] = [t["loss"] for t in tried if t["seconds"]]
        return SettingSearch(fastest(tried), tried, _wrong_loss(name, losses))

    def measure(name: str, setting: Setting) -> Round:
        result = _round(WAYS[name], whole, setting, config.steps, model_flops, config.seconds)
        if settings is not None:  # otherwise the search has checked the loss
            losses[name] = [result.laps.loss]
            if wrong := _wrong_loss(name, losses):
                raise PQMError(wrong)
        return result

    def record(name: str, setting: Setting, rounds: list[Round]) -> Record:
        return _record(WAYS[name], whole, model_flops, rounds)

    ways = {name: WAYS[name] for name in chosen.ways}
    if ALL_SWITCHES in ways and not ways.keys() >= set(OURS):  # it is then several switches ahead of the way before it
        ways[ALL_SWITCHES] = replace(ways[ALL_SWITCHES], title="pqm-fast, every switch on")
    take_turns(ways, config.rounds, "trajectories", search, measure, record, add)


def _wrong_loss(name: str, losses: dict[str, list[float]]) -> str | None:
    """Why a way of ours must not be timed: in some setting its loss differs from that of the first of our ways that
    ran. `losses` holds, for every way so far, the losses of all settings that ran."""
    if name not in OURS or not losses[name]:
        return None
    first = next(of_way[0] for way, of_way in losses.items() if way in OURS and of_way)  # in the order of time
    wrong = [loss for loss in losses[name] if not abs(loss - first) <= SAME_LOSS * abs(first)]
    if wrong:
        return f"its loss is {wrong[0]}, where {first} was expected; it is not timed until that is fixed"
    return None


class Round(NamedTuple):
    """Timed passes over all trajectories, in a new model."""

    laps: "Laps"
    computed: Record
    """The work of one pass, which is the same in every round."""


def _round(
    way: "TrainingWay", case: "Case", setting: Setting, steps: int, model_flops: "ModelFlops", seconds: float
) -> Round:
    from pqm_benchmarks.train.ways.steady import run_laps

    plan = way.plan(case.questions, steps, setting, case.device)
    laps = run_laps(way, case, setting, plan, seconds)
    computed = {
        "optimizer_steps": len(plan.steps),
        "micro_batches": sum(map(len, plan.steps)),
        "computed_tokens": plan.rows.tokens,
        "flops": plan.flops(model_flops),
        "excess": plan.excess,
        "notes": plan.notes,
    }
    return Round(laps, computed)


def _record(way: "TrainingWay", case: "Case", model_flops: "ModelFlops", rounds: list[Round]) -> Record:
    laps, computed = [result.laps for result in rounds], rounds[0].computed
    return {
        "precision": way.precision,
        **computed,
        "non_embedding": model_flops.non_embedding,
        "first_loss": laps[-1].loss,
        **over_median("trajectories", case.questions, laps, computed["computed_tokens"], computed["flops"]),
    }
