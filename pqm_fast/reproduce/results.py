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
from pqm_fast.reproduce.protocol import Member, baseline_of
from pqm_fast.scoring.cut_off import CutOff
from pqm_fast.scoring.stored import Scores, scores_of
from pqm_fast.study.judged_pool import read_judged_pool
from pqm_fast.train.metrics_file import METRICS_FILE, read_starts


def results_of(config: ReproduceConfig, trainings: Sequence[Member], pools: Pools) -> dict[str, Any]:
    """JSON-ready figures of finished trainings.

    Returns:
        `config`, the device and versions (`describe`), `baseline`: the name of the training that the others are
        compared with, or None, `left_out`: messages about the pools, `trained_on`: {training: {`trajectories`,
        `questions`, `cut`: how many of the trajectories lost steps, `notes`: messages about what was left out}},
        `unfit`: {pool: {`solutions`, `cut`: how many lost steps because they do not fit the context, `unscored`: how
        many of these have no score}}, and `pools`: {pool: {policy: its `yardsticks`, and `losses`:
        {name: {`title`, `aggregate`, `best_of_n`: `estimates`, `against`: `differences`, None for the baseline}}}}.
    """
    found: dict[str, Any] = {}
    baseline = baseline_of(config, trainings)
    unfit: dict[str, Any] = {}
    for name, file in pools.files.items():
        pool = read_judged_pool(file)
        found[name] = yardsticks(pool, config.n, config.seed)
        scores = {member: _scores_of(config, member, name) for member in trainings}
        unfit[name] = _unfit(scores[trainings[0]])  # all trainings have one tokenizer and one context
        values = {member: best_of_n(pool, own, member.aggregate(config), config.n) for member, own in scores.items()}
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
        "trained_on": {member.name: _trained_on(config, member) for member in trainings},
        "unfit": unfit,
        "pools": found,
    }


def _trained_on(config: ReproduceConfig, member: Member) -> dict[str, Any]:
    """What the run says of its data, at its last start."""
    start = read_starts(member.run(config) / METRICS_FILE)[-1]
    return {
        **{name: start.get(name) for name in ("trajectories", "questions", "cut")},
        "notes": start.get("data_notes", []),
    }


def _unfit(scores: Sequence[Scores]) -> dict[str, int]:
    cut = CutOff()
    for own in scores:
        cut.add(own)
    return {"solutions": len(scores), "cut": cut.records, "unscored": cut.unscored}


def _scores_of(config: ReproduceConfig, member: Member, pool: str) -> list[Scores]:
    """The scores of a pool, in the order of its records."""
    file = str(member.scores(config, pool))
    return [scores_of(record, file) for record in read_all([file], ReadOptions(), SkipSummary())]
