"""`pqm-fast reproduce`: pools, the estimate, the trainings, the scores, then results.json, a picture and the page."""

import gc
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from pqm_fast.common.digests import file_digest
from pqm_fast.common.files import read_json, write_json
from pqm_fast.common.lock import locked
from pqm_fast.model.identity import model_key
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.reproduce.conditions import check_conditions
from pqm_fast.reproduce.cost import estimate, stored_estimate
from pqm_fast.reproduce.document import cost_table, document
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.reproduce.picture import draw
from pqm_fast.reproduce.pools import Pools, prepare_pools
from pqm_fast.reproduce.protocol import Member, baseline_of, begins, check_run, members, resumed, train_config
from pqm_fast.reproduce.results import results_of
from pqm_fast.scoring.options import ScoreConfig, ScoringOptions
from pqm_fast.scoring.run import score
from pqm_fast.study.output import write_study
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
    baseline_of(config, trainings)  # refuses a baseline that is not trained
    for member in trainings:
        train_config(config, member)  # refuses options that cannot be used before anything is done
    if config.estimate_only or ranks.from_first(lambda: any(begins(config, member) for member in trainings)):
        train_config(config, trainings[0], ranks.world)  # refuses an optimizer step that these ranks cannot divide
    pools = ranks.from_first(lambda: _opened(config))
    if config.estimate_only or not ranks.from_first(lambda: _is_done(config, trainings, pools)):
        if config.micro_batches % ranks.world == 0:
            costs = estimate(config, trainings, pools, ranks)
            if ranks.first:
                print(cost_table(costs))
        elif ranks.first:
            print(f"no estimate: {config.micro_batches} micro-batches cannot be divided among {ranks.world} processes")
    if config.estimate_only:
        return {}
    for member in trainings:
        _train(config, member, ranks)
        _score(config, member, pools, ranks)
    return _written(config, trainings, pools) if ranks.first else {}


def _opened(config: ReproduceConfig) -> Pools:
    for member in members(config):
        check_run(config, member)
    check_conditions(config)
    pools = prepare_pools(config)
    for message in pools.left_out:
        print(message)
    return pools


def _is_done(config: ReproduceConfig, trainings: Sequence[Member], pools: Pools) -> bool:
    return all(
        is_trained(member.run(config)) and all(_is_scored(config, member, name, pools) for name in pools.files)
        for member in trainings
    )


def _train(config: ReproduceConfig, member: Member, ranks: Ranks) -> None:
    folder = member.run(config)
    ranks.from_first(lambda: check_run(config, member))  # it may have been made elsewhere in the meantime
    if ranks.from_first(lambda: is_trained(folder)):
        return
    if ranks.from_first(lambda: resumes(folder)):
        options = ranks.from_first(lambda: resumed(train_config(config, member)))
    else:
        options = train_config(config, member, ranks.world)
    if ranks.first:
        print(f"\n{member.title}: training in {folder}")
    train(options, ranks)
    gc.collect()  # compiled and sharded layers refer to themselves, and the next model needs their memory


def _score(config: ReproduceConfig, member: Member, pools: Pools, ranks: Ranks) -> None:
    for name, file in pools.files.items():
        out = member.scores(config, name)
        if ranks.from_first(partial(_is_scored, config, member, name, pools)):
            continue
        if ranks.first:
            print(f"\n{member.title}: scoring {name}")
            out.parent.mkdir(parents=True, exist_ok=True)
            out.unlink(missing_ok=True)  # scores by other weights
        scoring = ScoringOptions(
            max_tokens=config.score_tokens,
            prefix_tree=True,
            device=config.device,
            dtype=config.dtype,
            attention=config.attention,
            progress=config.progress,
        )
        score(ScoreConfig(str(member.run(config)), (str(file),), str(out), scoring=scoring), ranks)
        if ranks.first:
            write_json(member.scored_from(config, name), _scored_from(config, member, file))


def _is_scored(config: ReproduceConfig, member: Member, name: str, pools: Pools) -> bool:
    """Whether there are scores of a pool, by the model that is in the folder now."""
    stored = member.scored_from(config, name)
    if not member.scores(config, name).exists() or not stored.exists():
        return False
    return read_json(stored) == _scored_from(config, member, pools.files[name])


def _scored_from(config: ReproduceConfig, member: Member, pool: Path) -> dict[str, Any]:
    """The files that scores depend on, JSON-ready."""
    return {"model": model_key(member.run(config)), "pool": file_digest(pool)}


def _written(config: ReproduceConfig, trainings: Sequence[Member], pools: Pools) -> dict[str, Any]:
    results = results_of(config, trainings, pools)
    costs = stored_estimate(config)
    write_study(config.folder, results, draw, lambda results: document(results, costs), page="reproduce.md")
    return results
