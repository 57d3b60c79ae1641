"""One trial: train, score the pools, keep the figures."""

import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pqm_fast.common.files import write_json
from pqm_fast.common.options import DType
from pqm_fast.data.encode import OverLong
from pqm_fast.data.records import Record
from pqm_fast.errors import Diverged, PQMError, RecordError
from pqm_fast.evaluate.step_metrics import step_metrics
from pqm_fast.evaluate.step_thresholds import calibrated_metrics, cross_thresholds
from pqm_fast.scoring.stored import Scores
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.data import Materials
from pqm_fast.study.grid import Trial
from pqm_fast.study.pools import Pool, read_pool

DIGITS = 6


def powers(n: int) -> list[int]:
    """1, 2, 4, ... and `n` itself."""
    return sorted({*(2**k for k in range(n.bit_length())), n})


def run_trial(config: StudyConfig, materials: Materials, trial: Trial) -> None:
    """Trains and writes `materials.result(trial)`:

    `trial`: its cell, rate and seed; `diverged`: the message if a loss, a weight or a Q-value was not finite, else
    None; `tuning`: {aggregator: mean Best-of-N}; `test`: {aggregator: [policies][questions] Best-of-N, null where a
    policy has too few candidates}; `curve`: {aggregator: {n: mean}}; `steps`: the results of `step_metrics` and
    `calibrated_metrics` on test steps with labels, None without any. Means are over policies, then questions.

    Raises:
        PQMError: anything but divergence that stops a training, or a candidate that cannot be scored.
    """
    folder = config.folder / "runs" / trial.name
    result: dict[str, Any] = {"trial": asdict(trial), "diverged": None}
    log = config.folder / "logs" / f"{trial.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(log, "a", encoding="utf-8") as said, redirect_stdout(said):
            _train(config, materials, trial, folder)
        tuning, test = read_pool(materials.tuning), read_pool(materials.test)
        scorer = _scorer(config, folder)
        of_tuning, of_test = _scores(scorer, tuning), _scores(scorer, test)
    except Diverged as error:
        result["diverged"] = str(error)
    else:
        picked = {how: test.picked(of_test, how, powers(config.n)) for how in config.aggregate}
        result |= {
            "tuning": {how: _mean(tuning.picked(of_tuning, how, [config.n])[..., 0]) for how in config.aggregate},
            "test": {how: _listed(values[..., -1]) for how, values in picked.items()},
            "curve": {
                how: {str(n): _mean(values[..., i]) for i, n in enumerate(powers(config.n))}
                for how, values in picked.items()
            },
            "steps": _step_figures(test, of_test),
        }
    write_json(materials.result(trial), result)
    if not config.keep_weights:
        for file in (*folder.glob("*.safetensors"), *folder.glob("checkpoints/*")):
            shutil.rmtree(file) if file.is_dir() else file.unlink()


def _train(config: StudyConfig, materials: Materials, trial: Trial, folder: Path) -> None:
    from pqm_fast.train.checkpoint import complete_checkpoints
    from pqm_fast.train.config import TrainConfig
    from pqm_fast.train.loop import train

    trained = (folder / "config.json").exists()
    if trained and any(folder.glob("*.safetensors")):  # stopped before its figures were written
        return
    begun = not trained and bool(complete_checkpoints(folder / "checkpoints"))
    if folder.exists() and not begun:
        shutil.rmtree(folder)
    cell = trial.cell
    train(
        TrainConfig(
            model=materials.models[cell.model],
            data=(materials.train[cell.labels],),
            out=str(folder),
            loss=cell.loss,
            zeta=config.zeta if cell.zeta is None else cell.zeta,
            template=config.template,
            max_length=config.max_length,
            cache_dir=str(config.folder / "tokens"),
            eval_fraction=0.0,
            eval_every=0,
            micro_batch_tokens=config.micro_batch_tokens,
            prefix_tree=config.prefix_tree,
            accumulation=config.accumulation,
            max_steps=config.steps,
            learning_rate=trial.learning_rate,
            warmup_steps=config.warmup_steps,
            seed=trial.seed,
            device=config.device,
            dtype=_dtype(config),
            lora_rank=config.lora_rank,
            attention=config.attention,
            layers=config.layers,
            save_every=config.save_every,
            keep_checkpoints=1,
            resume=begun,
            progress=False,
        )
    )


def _dtype(config: StudyConfig) -> DType:
    """The same in all trials, which what a CPU is measured to be faster in might not be."""
    from pqm_fast.model.device import pick_device

    on_cpu = pick_device(config.device).type == "cpu"
    return "float32" if config.dtype == "auto" and on_cpu else config.dtype


def _scorer(config: StudyConfig, folder: Path) -> Any:
    from pqm_fast.scoring.scorer import Scorer

    return Scorer.from_pretrained(
        folder,
        device=config.device,
        dtype=_dtype(config),
        max_length=config.max_length,
        prefix_tree=config.prefix_tree,
        attention=config.attention,
    )


def _scores(scorer: Any, pool: Pool) -> list[Scores]:
    """Step scores of every candidate; equal solutions of a question are scored once."""
    solutions = [(record.prompt, tuple(record.steps)) for record in pool.records]
    distinct: dict[Any, Record] = {}
    for solution, record in zip(solutions, pool.records, strict=True):
        distinct.setdefault(solution, record)
    encoded = scorer.encoder(list(distinct.values()))
    # those that are too long stay, and are never preferred
    if bad := next((one for one in encoded if isinstance(one, RecordError) and not isinstance(one, OverLong)), None):
        raise PQMError(str(bad))  # a RecordError would not come through from a worker
    scores = scorer.score_encoded([(prompt, one) for (prompt, _), one in zip(distinct, encoded, strict=True)])
    found = dict(zip(distinct, scores, strict=True))
    return [found[solution] for solution in solutions]


def _step_figures(pool: Pool, scores: Sequence[Scores]) -> dict[str, Any] | None:
    labelled = [(q, r.labels, r.prompt) for q, r in zip(scores, pool.records, strict=True) if r.labels is not None]
    if not labelled:
        return None
    q, y, questions = (list(column) for column in zip(*labelled, strict=True))
    return step_metrics(q, y) | calibrated_metrics(q, y, cross_thresholds(q, y, questions))


def _mean(values: np.ndarray) -> float:
    """Of [policies, questions]: over policies, then questions."""
    return float(np.nanmean(np.nanmean(values, axis=0)))


def _listed(values: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(v) else round(float(v), DIGITS) for v in row] for row in values]
