"""Small pools and results of trials, made up by hand."""

import json
import re
from dataclasses import replace

from pqm_fast.data.formats import ReadOptions
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.grid import tuning_trials
from pqm_fast.study.judged_pool import read_judged_pool, write_judged_pool

CONFIG = StudyConfig(
    losses=("rank", "bce", "orm"),
    labels=("given", "flip:0.2"),
    models=("llama", "qwen2"),
    zetas=(0.0,),
    learning_rates=(0.001, 0.01),
    seeds=(5, 7),
    aggregate=("min", "last"),
    n=2,
)
STEPS = {"auroc": 0.75, "pair_accuracy": 0.5, "step_accuracy": 0.625, "first_error_accuracy": None, "steps": 9}


def pool(folder):
    """Three questions; policy b has no candidates of the second one. Two candidates each, and answers to vote on."""
    answers = {("q1", "a"): "12", ("q1", "b"): "11", ("q2", "a"): "22", ("q3", "a"): "21", ("q3", "b"): "22"}
    rows = [
        {
            "prompt": f"{question}?",
            "completions": [f"it is {answer}"],
            "question_id": question,
            "policy": policy,
            "answer": "1",
        }
        for (question, policy), own in answers.items()
        for answer in own
    ]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_judged_pool([str(folder / "pool.jsonl")], ReadOptions(), 2, folder / "judged.jsonl")
    return read_judged_pool(folder / "judged.jsonl")


def result(tuning=0.5, test=(0.5, 0.5, 0.5), last=None, diverged=None, steps=STEPS):
    """`test`: what policy a picks of each question, and policy b too where it has any; by last all of it is `last`."""
    if diverged is not None:
        return {"diverged": diverged}
    by_last = [0.0 if last is None else last] * 3
    return {
        "diverged": None,
        "tuning": {"min": tuning, "last": 0.0 if last is None else 1.0},
        "test": {how: [[*own], [own[0], None, own[2]]] for how, own in (("min", test), ("last", by_last))},
        "curve": {how: {"1": 0.25, "2": sum(own) / 3} for how, own in (("min", test), ("last", by_last))},
        "steps": steps,
    }


def every(grid, config=CONFIG, **own):
    """{trial: result}: for cells of `own` (by loss) its results by seed at the last, better rate and weight, else plain
    ones."""
    results = {}
    for cell in grid:
        tried = tuning_trials(config, cell)
        for trial in tried:
            for seed in config.seeds:
                chosen = trial == tried[-1]
                found = own.get(re.sub(r"\W", "_", cell.loss), {}) if chosen else {}
                results[replace(trial, seed=seed)] = found.get(seed, result(tuning=0.6 if chosen else 0.4))
    return results
