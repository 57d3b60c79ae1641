"""`pqm-fast bench train`: training steps at the sizes of real models, ours against three others, one switch at a time.

Needs torch, transformers, numpy and, for the picture, matplotlib; `run` is also how to start it from Python.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from pqm_benchmarks.shared.comparison import Add, Chosen, Record, Results, choose, compare, report
from pqm_benchmarks.shared.comparison_rounds import Found, Setting, over_median, take_turns
from pqm_benchmarks.shared.shapes import AnyShape
from pqm_benchmarks.train.report import OURS, OWN, table
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    from pqm_benchmarks.train.ways.steady import Case, Laps
    from pqm_benchmarks.train.ways.way import Way
    from pqm_benchmarks.work.run import Products

WayName = Literal["reference", "trl", "openrlhf", "packed", "tree", "step_rows", "compiled", "all"]
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
    from pqm_benchmarks.train.picture import draw

    return report(config, "train", partial(measure, config), table, draw)


def measure(
    config: TrainBench, store: Callable[[Results], None], settings: Mapping[str, Setting] | None = None
) -> Results:
    """As `compare` has it.

    A record is one way to train one model: its setting, what it computes, `lap_seconds` of each round, rates over
    the median pass, and the most memory that tensors held. With `settings` of each way none is looked for; passes are
    then of one optimizer step, so that losses can be compared.

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
    config: TrainBench, chosen: Chosen, given: Mapping[str, Setting] | None, model: Any, questions: Any, add: Add
) -> None:
    """The records of one model, as `take_turns` has it."""
    from pqm_benchmarks.shared.attempts import fastest
    from pqm_benchmarks.train.ways.ladder import WAYS
    from pqm_benchmarks.train.ways.steady import Case, try_settings
    from pqm_benchmarks.work.run import count_products

    products = count_products(model)
    whole = Case(model, questions, chosen.device, chosen.dtype)
    one_step = whole._replace(questions=questions[: config.questions])
    losses: dict[str, list[float]] = {}

    def search(name: str) -> Found:
        if given is not None:
            return Found([given[name]])
        tried = try_settings(WAYS[name], one_step, chosen.tries)
        losses[name] = [t["loss"] for t in tried if t["seconds"]]
        return Found(fastest(tried), tried, _wrong_loss(name, losses))

    def measure(name: str, setting: Setting) -> Round:
        found = _round(WAYS[name], whole, setting, config.steps, products, config.seconds)
        if given is not None:  # else the search has seen the loss
            losses[name] = [found.laps.loss]
            if wrong := _wrong_loss(name, losses):
                raise PQMError(wrong)
        return found

    def record(name: str, setting: Setting, rounds: list[Round]) -> Record:
        return _record(WAYS[name], whole, products, rounds)

    ways = {name: WAYS[name] for name in chosen.ways}
    if OWN in ways and not ways.keys() >= set(OURS):  # it then is not one switch more than the one before it
        ways[OWN] = replace(ways[OWN], title="pqm-fast, every switch on")
    take_turns(ways, config.rounds, "trajectories", search, measure, record, add)


def _wrong_loss(name: str, losses: dict[str, list[float]]) -> str | None:
    """Why a way of ours is not timed: in some setting its loss is not that of the first of ours that ran. `losses` has
    those of all settings that ran, of every way so far."""
    if name not in OURS or not losses[name]:
        return None
    first = next(own[0] for way, own in losses.items() if way in OURS and own)  # in the order of time
    wrong = [loss for loss in losses[name] if not abs(loss - first) <= SAME_LOSS * abs(first)]
    if wrong:
        return f"its loss is {wrong[0]}, where {first} was expected; it is not timed until that is mended"
    return None


class Round(NamedTuple):
    """Passes over all trajectories, in a model made anew."""

    laps: "Laps"
    computed: Record
    """What one pass computes: the same in every round."""


def _round(way: "Way", case: "Case", setting: Setting, steps: int, products: "Products", seconds: float) -> Round:
    from pqm_benchmarks.train.ways.steady import run_laps

    plan = way.plan(case.questions, steps, setting, case.device)
    laps = run_laps(way, case, setting, plan, seconds)
    computed = {
        "optimizer_steps": len(plan.steps),
        "micro_batches": sum(map(len, plan.steps)),
        "computed_tokens": plan.layout.tokens,
        "flops": plan.flops(products),
        "excess": plan.excess,
        "notes": plan.notes,
    }
    return Round(laps, computed)


def _record(way: "Way", case: "Case", products: "Products", rounds: list[Round]) -> Record:
    laps, computed = [own.laps for own in rounds], rounds[0].computed
    return {
        "precision": way.precision,
        **computed,
        "non_embedding": products.non_embedding,
        "first_loss": laps[-1].loss,
        **over_median("trajectories", case.questions, laps, computed["computed_tokens"], computed["flops"]),
    }
