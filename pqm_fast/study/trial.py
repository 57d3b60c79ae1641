"""Runs one trial: trains a model, scores the pools with it, and writes the result."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from pqm_fast.common.files import write_json
from pqm_fast.common.options import DType
from pqm_fast.data.encode import OverLong
from pqm_fast.data.records import Record
from pqm_fast.errors import Diverged, PQMError, RecordError
from pqm_fast.scoring.stored import Scores
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.grid import Trial
from pqm_fast.study.judged_pool import JudgedPool, read_judged_pool
from pqm_fast.study.shared_data import SharedData
from pqm_fast.study.trial_result import diverged_result, finished_result, result_file
from pqm_fast.train.run_files import is_trained, remove_weights, resumes


def run_trial(config: StudyConfig, shared: SharedData, trial: Trial) -> None:
    """Trains, scores both pools and writes `result_file(config, trial)`; a divergence is a result too.

    Raises:
        PQMError: the training failed for a reason other than divergence, or a candidate cannot be scored.
    """
    folder = config.folder / "runs" / trial.name
    log_file = config.folder / "logs" / f"{trial.name}.txt"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(log_file, "a", encoding="utf-8") as log, redirect_stdout(log):
            _train(config, shared, trial, folder)
        tuning, test = read_judged_pool(shared.tuning), read_judged_pool(shared.test)
        scorer = _scorer(config, folder)
        scored = [(pool, _scores(scorer, pool)) for pool in (tuning, test)]
    except Diverged as error:
        result = diverged_result(trial, str(error))
    else:
        result = finished_result(config, trial, tuning=scored[0], test=scored[1])
    write_json(result_file(config, trial), result)
    if not config.keep_weights:
        remove_weights(folder)


def _train(config: StudyConfig, shared: SharedData, trial: Trial, folder: Path) -> None:
    from pqm_fast.train.config import TrainConfig
    from pqm_fast.train.loop import train

    if is_trained(folder):  # an earlier call was stopped before it wrote the result
        return
    cell = trial.cell
    train(
        TrainConfig(
            model=shared.models[cell.model],
            data=(shared.train[cell.labels],),
            out=str(folder),
            loss=cell.combination.loss,
            compare=cell.combination.compare or "none",
            compare_weight=1.0 if trial.compare_weight is None else trial.compare_weight,
            temperature=config.temperature,
            noise=config.noise,
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
            resume=resumes(folder),
            progress=False,
        )
    )


def _dtype(config: StudyConfig) -> DType:
    """float32 for `auto` on a CPU: `train` would measure in each trial which dtype is faster, and take that one."""
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


def _scores(scorer: Any, pool: JudgedPool) -> Sequence[Scores]:
    """Step scores of every candidate; equal solutions of a question are scored once."""
    solutions = [(record.prompt, tuple(record.steps)) for record in pool.records]
    distinct: dict[Any, Record] = {}
    for solution, record in zip(solutions, pool.records, strict=True):
        distinct.setdefault(solution, record)
    encoded = scorer.encoder(list(distinct.values()))
    # solutions that are too long stay: their cut-off steps have no score, so they are never preferred
    errors = [entry for entry in encoded if isinstance(entry, RecordError) and not isinstance(entry, OverLong)]
    if errors:
        raise PQMError(str(errors[0]))  # a RecordError takes two arguments, so it cannot be pickled back from a worker
    scores = scorer.score_encoded([(prompt, entry) for (prompt, _), entry in zip(distinct, encoded, strict=True)])
    scores_of = dict(zip(distinct, scores, strict=True))
    return [scores_of[solution] for solution in solutions]
