"""What a reproduction costs: tokens and operations, counted, and the time, from a few micro-batches that are timed."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pqm_fast.common.environment import describe
from pqm_fast.common.files import read_json, write_json
from pqm_fast.data.encode import Encoder, OverLong
from pqm_fast.data.read import CHUNK, chunks, read_records
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.model.device import dtype_name
from pqm_fast.ranks.group import Ranks
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.reproduce.pools import Pools
from pqm_fast.reproduce.protocol import Member, train_config
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.train.comparisons import check_comparisons
from pqm_fast.train.deal import Shape, dealt, shape_of_model
from pqm_fast.train.evaluation import load_batches
from pqm_fast.train.run import Run, prepare
from pqm_fast.train.schedule import StepOrder
from pqm_fast.train.split import training_and_held_out
from pqm_fast.train.step import Planned, backward

FILE = "estimate.json"
FIELDS = {"device", "processes", "names", "dtype", "parameters", "measured_with", "measured", "pools", "losses"}
MEASURED = 4  # micro-batches of each process that are timed, after one that is not
ENOUGH = 60.0  # seconds after which no further micro-batch is timed


def estimate(config: ReproduceConfig, members: Sequence[Member], pools: Pools, ranks: Ranks) -> dict[str, Any]:
    """The cost of all trainings and scores, whether or not some are done. It is stored, and used again for the same
    ones on the same device with as many processes. All ranks call it.

    Returns:
        `device`, `processes`, `names` of the trainings, `dtype`, `parameters` (without the embedding) and
        `measured_with` (a training). `measured`: {`training`, `forward`: {`tokens`, `seconds`}} of the micro-batches
        that were timed. `pools`: {name: {`solutions`, `tokens`}}. `losses`: for each training its `name`, `steps`,
        `training` and `scoring`, the last two as {`tokens`, `operations`, `seconds`}. Tokens are those that are
        computed, operations those of matrix products and attention without recomputation; seconds are tokens divided by
        the measured rate. JSON-ready.

    Raises:
        PQMError: a model or data that cannot be used.
    """
    conditions = {"device": describe()["device"], "processes": ranks.world, "names": [own.name for own in members]}
    stored = ranks.from_first(lambda: stored_estimate(config))
    if stored is not None and all(stored[name] == value for name, value in conditions.items()):
        return stored
    costs = conditions | _estimated(config, members, pools, ranks)
    gc.collect()  # compiled and sharded layers refer to themselves, and the first training needs their memory
    if ranks.first:
        write_json(config.folder / FILE, costs)
    return costs


def stored_estimate(config: ReproduceConfig) -> dict[str, Any] | None:
    """The last estimate; None if there is none."""
    file = config.folder / FILE
    if not file.exists():
        return None
    stored = read_json(file)
    if not isinstance(stored, dict) or not stored.keys() >= FIELDS:
        raise PQMError(f"{file}: damaged, or of another version; delete it, and it is made again")
    return stored


def _estimated(config: ReproduceConfig, members: Sequence[Member], pools: Pools, ranks: Ranks) -> dict[str, Any]:
    # a folder that nothing is written to: the run of this training may have begun
    first = replace(train_config(config, members[0], ranks.world), out=str(config.folder / "estimate"))
    run = prepare(first, ranks)
    measured = _measured(run, ranks)
    return ranks.from_first(lambda: _counted(config, members, pools, run, measured))


def _counted(
    config: ReproduceConfig, members: Sequence[Member], pools: Pools, run: Run, measured: dict[str, Any]
) -> dict[str, Any]:
    shape = shape_of_model(run.model)

    def cost(counts: dict[str, float], *, backward: bool) -> dict[str, float]:
        timed = measured["training" if backward else "forward"]
        return {
            "tokens": counts["tokens"],
            "operations": operations(counts["tokens"], counts["pairs"], shape, backward=backward),
            "seconds": counts["tokens"] * timed["seconds"] / timed["tokens"],
        }

    by_pool = {name: _to_score(config, run, str(path)) for name, path in pools.files.items()}
    scoring = cost({key: sum(own[key] for own in by_pool.values()) for key in ("tokens", "pairs")}, backward=False)
    losses = []
    for member in members:
        counts = _to_train(config, member, run)
        training = cost(counts, backward=True)
        losses.append({"name": member.name, "steps": counts["steps"], "training": training, "scoring": scoring})
    return {
        "dtype": dtype_name(run.model.classifier.dtype),
        "parameters": shape.parameters,
        "measured_with": members[0].name,
        "measured": measured,
        "pools": {name: {key: own[key] for key in ("solutions", "tokens")} for name, own in by_pool.items()},
        "losses": losses,
    }


def operations(tokens: float, pairs: float, model: Shape, *, backward: bool) -> float:
    """Floating-point operations of a decoder: 2 for each parameter and token, 4 for each number of the heads of a layer
    and each pair of a token and one that it attends to; three times as many with the backward pass."""
    forward = 2.0 * model.parameters * tokens + 4.0 * model.depth * model.width * pairs
    return 3 * forward if backward else forward


def _to_train(config: ReproduceConfig, member: Member, run: Run) -> dict[str, float]:
    """Optimizer `steps` of a training, and the `tokens` and the `pairs` of one and another that it attends to.

    Raises PQMError for data that its loss cannot use, before any training has begun.
    """
    options = train_config(config, member, run.ranks.world)
    training, _ = training_and_held_out(options, run.encoder, [])
    check_comparisons(options, training, [])
    units = training.units(training.indices, run.order.sizes.micro_batch_tokens)
    order = StepOrder(units, run.order.sizes, config.seed, run.order.work)
    total = options.max_steps or order.count_steps(options.epochs)
    batches = [batch for step in order.steps(0, total) for batch in step]
    tokens, pairs = int(units.tokens_of(batches).sum()), float(units.pairs_of(batches).sum())
    return {"steps": total, "tokens": tokens, "pairs": pairs}


def _to_score(config: ReproduceConfig, run: Run, pool: str) -> dict[str, float]:
    """`solutions` of a pool, and the `tokens` and `pairs` to compute for their scores."""
    encoder = Encoder(run.tokenizer, run.recipe.template, run.model.context)
    scorer = Scorer(run.model, encoder, config.score_tokens, prefix_tree=True)
    counts = {"solutions": 0, "tokens": 0, "pairs": 0.0}
    for records in chunks(read_records(pool), CHUNK):  # as many as are scored together
        encoded = encoder(records)
        for result in encoded:
            if isinstance(result, RecordError) and not isinstance(result, OverLong):
                raise PQMError(f"{pool}: {result}")
        units = scorer.packing([(r.prompt, result) for r, result in zip(records, encoded, strict=True)]).units
        counts["solutions"] += len(records)
        counts["tokens"] += int(units.sizes.sum())
        counts["pairs"] += float(units.pairs.sum())
    return counts


def _measured(run: Run, ranks: Ranks) -> dict[str, Any]:
    """{`training`, `forward`: {`tokens`, `seconds`}} of micro-batches of the first optimizer step, on all ranks
    together: forward and backward without the update, and forward alone."""
    step = next(run.order.steps(0, 1))
    own = dealt(step, run.order.units, run.order.work, ranks.world)[ranks.rank][:MEASURED]
    with closing(load_batches(run, run.training, ([members] for members in own))) as loaded:
        batches = [batch for [batch] in loaded]
    normalizer = run.objective.normalizer(*run.training.counts(np.concatenate(step)))

    def train(planned: Planned) -> None:
        backward(run.model, [planned], run.objective, normalizer)

    @torch.no_grad()
    def score(planned: Planned) -> None:
        run.model.eval()
        run.objective(run.model, *planned, normalizer)

    return {"training": _timed(train, batches, run, ranks), "forward": _timed(score, batches, run, ranks)}


def _timed(compute: Callable[[Planned], None], batches: Sequence[Planned], run: Run, ranks: Ranks) -> dict[str, float]:
    """Tokens of all ranks together, and the seconds that the slowest needed."""

    def computed(planned: Planned) -> float:
        compute(planned)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        return time.perf_counter()

    start = computed(batches[0])  # compiles, and fills caches
    tokens, seconds = 0, 0.0
    for planned in batches:
        seconds = computed(planned) - start
        tokens += planned[0].num_tokens
        if ranks.any(seconds > ENOUGH):
            break
    return {"tokens": sum(ranks.gather(tokens)), "seconds": max(ranks.gather(seconds))}
