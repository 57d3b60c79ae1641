"""The contents of results.json: for each pool and policy the yardsticks, and Best-of-N of each training."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pqm_fast.common.environment import describe
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.reproduce.figures import best_of_n, differences, estimates, yardsticks
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.reproduce.pools import Pools
from pqm_fast.reproduce.protocol import Member
from pqm_fast.scoring.stored import Scores, scores_of
from pqm_fast.study.judged_pool import read_judged_pool


def results_of(config: ReproduceConfig, trainings: Sequence[Member], pools: Pools) -> dict[str, Any]:
    """JSON-ready figures of finished trainings.

    Returns:
        `config`, the device and versions (`describe`), `baseline`: the name of the training that the others are
        compared with, or None, `left_out`: messages, and `pools`: {pool: {policy: its `yardsticks`, and `losses`:
        {name: {`title`, `aggregate`, `best_of_n`: `estimates`, `against`: `differences`, None for the baseline}}}}.
    """
    found: dict[str, Any] = {}
    baseline = next((member for member in trainings if member.loss == config.baseline), None)
    for name, file in pools.files.items():
        pool = read_judged_pool(file)
        found[name] = yardsticks(pool, config.n, config.seed)
        values = {
            member: best_of_n(pool, _scores_of(config, member, name), member.aggregate(config), config.n)
            for member in trainings
        }
        for policy, entry in found[name].items():
            entry["losses"] = {
                member.name: {
                    "title": member.title,
                    "aggregate": member.aggregate(config),
                    "best_of_n": estimates(own[policy], config.n),
                    "against": None
                    if baseline is None or member == baseline
                    else differences(own[policy], values[baseline][policy], config.n),
                }
                for member, own in values.items()
            }
    return {
        "config": json.loads(json.dumps(asdict(config))),
        **describe(),
        "baseline": None if baseline is None else baseline.name,
        "left_out": pools.left_out,
        "pools": found,
    }


def _scores_of(config: ReproduceConfig, member: Member, pool: str) -> list[Scores]:
    """The scores of a pool, in the order of its records."""
    file = str(member.scores(config, pool))
    return [scores_of(record, file) for record in read_all([file], ReadOptions(), SkipSummary())]
