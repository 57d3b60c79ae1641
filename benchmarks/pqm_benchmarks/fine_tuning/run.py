"""`python -m pqm_benchmarks fine-tuning`: losses compared by fine-tuning a small model, with all weights and with LoRA.

The records are split as `pqm-fast probe-study` splits them, and those of long problems are left out.
"""

import gc
import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pqm_fast.common.combination import parse_loss
from pqm_fast.common.conditions import keep_conditions
from pqm_fast.common.environment import describe
from pqm_fast.common.files import write_json
from pqm_fast.data.encode import Encoded, Encoder, Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import Record
from pqm_fast.data.source_key import source_key
from pqm_fast.probe_study.controls import CONTROLS, control_scores
from pqm_fast.probe_study.options import ProbeStudyConfig
from pqm_fast.probe_study.shared_data import group_of, prepare, split_file, write_records
from pqm_fast.probe_study.step_test import order_values
from pqm_fast.scoring.options import ScoreConfig, ScoringOptions
from pqm_fast.scoring.stored import Scores
from pqm_fast.study.interval import interval
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.run_files import is_trained, remove_weights, resumes

Kind = Literal["full", "lora"]
Values = dict[str, np.ndarray]
"""{figure: [problems] pseudo-values}."""
KINDS: tuple[Kind, ...] = ("full", "lora")
MAY_CHANGE = {"out", "losses", "seeds", "kinds", "progress"}  # from one call to the next


@dataclass(frozen=True)
class FineTuningBench:
    """Fine-tune a model with several losses and seeds, all weights and adapters, and test on other problems."""

    model: str
    """Folder or hub id of a decoder."""
    data: tuple[str, ...]
    """Records with exact step labels, whose ids are PROBLEM/VARIANT."""
    out: str = "runs/fine-tuning"
    """Folder for the runs, their scores and fine-tuning.json. The same command continues: a training that was killed
    begins again, and more losses, seeds and kinds are added to those that are there."""
    losses: tuple[str, ...] = ("bce", "rank", "bce+sibling")
    """Losses to compare with the first one."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the order of the data and of new weights."""
    kinds: tuple[Kind, ...] = KINDS
    """All weights, or adapters of rank 16."""
    trajectories: int = 600
    """The most trajectories to train on, of whole problems."""
    longest: int = 384
    """Problems with a longer trajectory, in tokens, are left out."""
    epochs: float = 1.0
    """Passes over them."""
    micro_batch_tokens: int = 2048
    """Tokens of an optimizer step."""
    learning_rates: tuple[float, float] = (1e-4, 1e-3)
    """With all weights, and with adapters."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Data type of weights and computation."""
    skip_bad: bool = True
    """Leave out records that cannot be read."""
    progress: bool = False
    """Show progress bars."""

    @property
    def folder(self) -> Path:
        return Path(self.out)


def run(config: FineTuningBench) -> dict[str, Any]:
    """Trains and scores what is not scored yet, and writes OUT/fine-tuning.json. Returns its contents.

    Raises PQMError if the folder holds something else, or a comparison under other conditions.
    """
    from pqm_benchmarks.fine_tuning.report import table

    results, prepared = ("runs", "scores"), ("data", "train.jsonl", "test.jsonl")
    keep_conditions(config.folder, "comparison", _conditions(config), {}, results=results, prepared=prepared)
    _write_data(config)
    for seed, kind, loss in product(config.seeds, config.kinds, config.losses):  # so that all advance together
        if not _scores_file(config, kind, loss, seed).exists():
            _train_and_score(config, kind, loss, seed)
    found = {"config": asdict(config), **describe(), **figures(config)}
    write_json(config.folder / "fine-tuning.json", found)
    print(table(found))
    return found


def figures(config: FineTuningBench) -> dict[str, Any]:
    """The figures of every kind and loss that has scores, over the seeds that are scored, with intervals over seeds and
    problems. A difference from the first loss is over the seeds of both; None if there are none."""
    records = list(read_all([str(config.folder / "test.jsonl")], ReadOptions(), SkipSummary()))
    groups = [group_of(record, "id") for record in records]
    cells = []
    for kind in config.kinds:
        base: dict[int, Values] = {}
        for loss in config.losses:
            own = {
                seed: order_values(records, groups, _read_scores(file, records))
                for seed in config.seeds
                if (file := _scores_file(config, kind, loss, seed)).exists()
            }
            if loss == config.losses[0]:
                base = own
            both = [] if loss == config.losses[0] else [seed for seed in own if seed in base]
            differences = [{name: own[seed][name] - base[seed][name] for name in own[seed]} for seed in both]
            if own:
                cells.append(
                    {
                        "kind": kind,
                        "loss": loss,
                        "seeds": list(own),
                        "by_seed": {
                            name: [float(values[name].mean()) for values in own.values()]
                            for name in next(iter(own.values()))
                        },
                        "figures": _intervals(list(own.values())),
                        "against": {"seeds": both, "figures": _intervals(differences, -1.0)} if both else None,
                    }
                )
    controls = []
    for name in CONTROLS:
        values = order_values(records, groups, control_scores(name, records))
        controls.append({"name": name, "figures": _intervals([values])})
    training = list(read_all([str(config.folder / "train.jsonl")], ReadOptions(), SkipSummary()))
    return {
        "training": len(training),
        "training_problems": len({group_of(record, "id") for record in training}),
        "test": len(records),
        "test_problems": len(set(groups)),
        "cells": cells,
        "controls": controls,
    }


def _conditions(config: FineTuningBench) -> dict[str, Any]:
    """The options that all trainings share and the state of the data files, JSON-ready."""
    options = {k: v for k, v in json.loads(json.dumps(asdict(config))).items() if k not in MAY_CHANGE}
    return options | {"files": [source_key(name) for name in config.data]}


def _intervals(by_seed: list[Values], lowest: float = 0.0) -> dict[str, Any]:
    return {name: asdict(interval(np.array([values[name] for values in by_seed]), lowest)) for name in by_seed[0]}


def _scores_file(config: FineTuningBench, kind: Kind, loss: str, seed: int) -> Path:
    return config.folder / "scores" / f"{kind}-{loss}-{seed}.jsonl"


def _read_scores(file: Path, records: list[Record]) -> list[Scores]:
    with open(file, encoding="utf-8") as lines:
        by_id = {row["id"]: row["scores"] for row in map(json.loads, lines)}
    return [by_id[record.id] for record in records]


def _write_data(config: FineTuningBench) -> None:
    """Writes train.jsonl and test.jsonl: whole problems without a long trajectory, in an order that is drawn once."""
    from pqm_fast.model.tokenizer import load_tokenizer

    study = ProbeStudyConfig(
        model=config.model, data=config.data, out=config.out, group_by="id", labels=("given",),
        read=ReadOptions(skip_bad=config.skip_bad),
    )  # fmt: skip
    prepare(study)
    encoder = Encoder(load_tokenizer(config.model), Template(step_token="last"), 2048)
    for side, name, limit in (("training", "train", config.trajectories), ("test", "test", None)):
        records = list(read_all([str(split_file(study, side))], ReadOptions(), SkipSummary()))
        lengths: dict[str, int] = {}
        for record, encoded in zip(records, encoder(records), strict=True):
            group = group_of(record, "id")
            # one that is cut is longer than any limit here
            length = len(encoded.input_ids) if isinstance(encoded, Encoded) and not encoded.steps_cut else 10**9
            lengths[group] = max(lengths.get(group, 0), length)
        groups = [group for group, length in lengths.items() if length <= config.longest]
        np.random.default_rng(0).shuffle(groups)
        chosen: set[str] = set()
        count = 0
        for group in groups:
            own = sum(group_of(record, "id") == group for record in records)
            if limit is not None and count + own > limit:
                break
            chosen.add(group)
            count += own
        write_records(config.folder / f"{name}.jsonl", [r for r in records if group_of(r, "id") in chosen])


def _train_and_score(config: FineTuningBench, kind: Kind, loss: str, seed: int) -> None:
    from pqm_fast.scoring.run import score

    out = config.folder / "runs" / f"{kind}-{loss}-{seed}"
    if not is_trained(out):  # otherwise an earlier call was stopped before it had scored
        _train(config, kind, loss, seed, out)
        gc.collect()
    scores = _scores_file(config, kind, loss, seed)
    scores.parent.mkdir(exist_ok=True)
    options = ScoringOptions(prefix_tree=True, dtype=config.dtype, max_tokens=4096, progress=config.progress)
    score(ScoreConfig(str(out), (str(config.folder / "test.jsonl"),), str(scores), scoring=options))
    remove_weights(out)  # the scores are what counts


def _train(config: FineTuningBench, kind: Kind, loss: str, seed: int, out: Path) -> None:
    from pqm_fast.train.loop import train

    combination = parse_loss(loss)
    rate = config.learning_rates[KINDS.index(kind)]
    train(
        TrainConfig(
            model=config.model, data=(str(config.folder / "train.jsonl"),), out=str(out), loss=combination.loss,
            compare=combination.compare or "none", learning_rate=rate, lora_rank=16 if kind == "lora" else 0, seed=seed,
            template=Template(step_token="last"), eval_fraction=0.0, epochs=config.epochs, warmup_steps=4,
            micro_batch_tokens=config.micro_batch_tokens, max_length=min(1024, config.micro_batch_tokens),
            prefix_tree=True, dtype=config.dtype, save_every=0, resume=resumes(out), progress=config.progress,
        )
    )  # fmt: skip
