"""`pqm-fast reproduce`: pools, the estimate, the trainings, the scores, then results.json, a picture and the page."""

import gc
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from pqm_fast.common.files import atomic_file, write_json
from pqm_fast.common.lock import locked
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.reproduce.conditions import check_conditions
from pqm_fast.reproduce.cost import estimate, stored_estimate
from pqm_fast.reproduce.document import cost_table, document
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.reproduce.picture import draw
from pqm_fast.reproduce.pools import Pools, prepare_pools
from pqm_fast.reproduce.protocol import Member, members, resumed, train_config
from pqm_fast.reproduce.results import results_of
from pqm_fast.scoring.options import ScoreConfig, ScoringOptions
from pqm_fast.scoring.run import score
from pqm_fast.train.loop import train
from pqm_fast.train.run_files import is_trained, resumes


def reproduce(config: ReproduceConfig, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Trains and scores what is not done yet, on all ranks.

    Returns:
        The contents of results.json (`results_of`) on rank 0; {} on the others, and if only the estimate was asked for.

    Raises:
        PQMError: data, a model or a folder that cannot be used; a training that diverged.
        Stopped: a signal came; what is done is kept.
    """
    with locked(config.folder, "reproduce", folder=True) if ranks.first else nullcontext():
        return _reproduce(config, ranks)


def _reproduce(config: ReproduceConfig, ranks: Ranks) -> dict[str, Any]:
    trainings = members(config)
    train_config(config, trainings[0], ranks.world)  # refuses an optimizer step that these ranks cannot divide
    pools = ranks.from_first(lambda: _opened(config))
    if config.estimate_only or not ranks.from_first(lambda: _is_done(config, trainings, pools)):
        costs = estimate(config, trainings, pools, ranks)
        if ranks.first:
            print(cost_table(costs))
    if config.estimate_only:
        return {}
    for member in trainings:
        _train(config, member, ranks)
        _score(config, member, pools, ranks)
    return _written(config, trainings, pools) if ranks.first else {}


def _opened(config: ReproduceConfig) -> Pools:
    check_conditions(config)
    pools = prepare_pools(config)
    for message in pools.left_out:
        print(message)
    return pools


def _is_done(config: ReproduceConfig, trainings: Sequence[Member], pools: Pools) -> bool:
    return all(
        is_trained(member.run(config)) and all(member.scores(config, pool).exists() for pool in pools.files)
        for member in trainings
    )


def _train(config: ReproduceConfig, member: Member, ranks: Ranks) -> None:
    folder = member.run(config)
    if ranks.from_first(lambda: is_trained(folder)):
        return
    options = train_config(config, member, ranks.world)
    if ranks.from_first(lambda: resumes(folder)):
        options = ranks.from_first(lambda: resumed(options))
    if ranks.first:
        print(f"\n{member.title}: training in {folder}")
    train(options, ranks)
    gc.collect()  # compiled and sharded layers refer to themselves, and the next model needs their memory


def _score(config: ReproduceConfig, member: Member, pools: Pools, ranks: Ranks) -> None:
    for name, file in pools.files.items():
        out = member.scores(config, name)
        if ranks.from_first(out.exists):
            continue
        if ranks.first:
            print(f"\n{member.title}: scoring {name}")
            out.parent.mkdir(parents=True, exist_ok=True)
        scoring = ScoringOptions(
            max_tokens=config.score_tokens,
            prefix_tree=True,
            device=config.device,
            dtype=config.dtype,
            attention=config.attention,
            progress=config.progress,
        )
        score(ScoreConfig(str(member.run(config)), (str(file),), str(out), scoring=scoring), ranks)


def _written(config: ReproduceConfig, trainings: Sequence[Member], pools: Pools) -> dict[str, Any]:
    results = results_of(config, trainings, pools)
    write_json(config.folder / "results.json", results)
    draw(results, config.folder / "best_of_n.png")
    text = document(results, stored_estimate(config))
    with atomic_file(config.folder / "reproduce.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return results
