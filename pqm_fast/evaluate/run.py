"""`pqm-fast evaluate`: evaluates a checkpoint on records, or the scores that `pqm-fast score` wrote."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pqm_fast.common.files import file_to_write, write_json
from pqm_fast.common.options import Text
from pqm_fast.data.candidate import Candidate, has_question_id
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import TEMPERATURE, check_temperature
from pqm_fast.evaluate.pools import evaluate_pools
from pqm_fast.evaluate.steps import Pair, evaluate_steps
from pqm_fast.evaluate.table import table
from pqm_fast.evaluate.vote import DRAWS
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.scoring.cut_off import CutOff
from pqm_fast.scoring.options import ScoringOptions
from pqm_fast.scoring.stored import SCORED_BY, model_name, scores_of

Aggregator = Literal["min", "last", "mean", "softmin", "prod", "max"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Step metrics on labelled steps and Best-of-N on pools of candidate solutions, as far as the records allow."""

    data: tuple[str, ...]
    """Files that `pqm-fast score` wrote; with --model any records, which are scored first."""
    model: str | None = None
    """Checkpoint to score the records with; without it the records must already have scores."""
    out: str | None = None
    """JSON file for the results, with pictures of the same name beside it. Default: they are only printed."""
    aggregate: tuple[Aggregator, ...] = get_args(Aggregator)
    """How to compute a solution's score from its steps' Q-values (prod: logarithm of the product of the sigmoids;
    softmin: between min and mean)."""
    temperature: float = TEMPERATURE
    """Temperature of softmin, in logits: close to min if it is low, close to mean if it is high."""
    n: tuple[int, ...] = ()
    """Pool sizes N of Best-of-N. Default: 1, 2, 4, ... as far as the pools go."""
    threshold: float = 0.0
    """A step counts as predicted wrong below this Q-value. Comparative losses do not place their scores on both sides
    of 0: compare models by the calibrated figures, which are printed beside those at this threshold."""
    calibrate: tuple[str, ...] = ()
    """Records of other questions, in the formats of --data: the calibrated figures use the thresholds that are best on
    them, and the probabilities of steps the Platt scaling fitted on them. Default: those for each fifth of the
    questions come from the other four."""
    by: Text = "error_type"
    """Field of the records to break the step figures down by."""
    draws: int = DRAWS
    """Random subsets per question and N for votes, where there are more than that."""
    seed: int = 0
    """Seed of these random subsets."""
    read: ReadOptions = field(default_factory=ReadOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)

    def __post_init__(self) -> None:
        check_temperature(self.temperature)


def evaluate(config: EvaluateConfig, ranks: Ranks = ALONE, *, quiet: bool = False) -> dict[str, Any]:
    """Evaluates the records, and prints the tables unless `quiet`. Of several ranks, all score records, and rank 0
    alone evaluates them; the others return an empty dict.

    If `config.out` is set, writes the results there and the pictures beside it. Returns the results.

    Raises:
        PQMError: the records cannot be read, scored or evaluated, or there is nothing to evaluate.
    """
    if config.out:
        file_to_write(Path(config.out))
    skipped, cut = SkipSummary(), CutOff()
    scored = list(_scored(config, config.data, skipped, cut, ranks))
    calibration_pairs = list(_scored(config, config.calibrate, skipped, cut, ranks)) if config.calibrate else None
    if not ranks.first:
        return {}
    labelled = [pair for pair in scored if pair[0].labels is not None]
    candidates = [pair for pair in scored if has_question_id(pair[0])]
    for record, _ in candidates:
        Candidate.of(record, ", ".join(config.data))  # refuses a bad one before anything is computed
    left_out = [str(skipped)] * bool(skipped.total) + [str(cut)] * bool(cut.records)
    result: dict[str, Any] = {
        "model": _model(config, scored),
        "data": list(config.data),
        "records": len(scored),
        "left_out": left_out,
    }
    parts = []
    if labelled:
        parts.append(evaluate_steps(labelled, config.threshold, config.by, calibration_pairs))
    if candidates:
        parts.append(
            evaluate_pools(
                candidates,
                config.aggregate,
                config.n or None,
                draws=config.draws,
                seed=config.seed,
                progress=config.scoring.progress and not quiet,
                temperature=config.temperature,
            )
        )
    if not parts:
        raise PQMError(
            f"{', '.join(config.data)}: nothing to evaluate: no record has labels, and none is a candidate of a pool"
        )
    for part in parts:
        result["left_out"] += part.pop("left_out")
        result |= part
    if not quiet:
        print(table(result))
    if config.out:
        from pqm_fast.evaluate.pictures import draw

        write_json(Path(config.out), result)
        for picture in draw(result, Path(config.out)):
            if not quiet:
                print(f"\npicture: {picture}")
    return result


def _model(config: EvaluateConfig, scored: list[Pair]) -> str | None:
    """The model that all scores come from; None if the records do not name it, or name several."""
    if config.model is not None:
        return model_name(config.model)
    names = {str(name) if (name := record.extra.get(SCORED_BY)) else None for record, _ in scored}
    return names.pop() if len(names) == 1 else None


def _scored(
    config: EvaluateConfig, data: tuple[str, ...], skipped: SkipSummary, cut: CutOff, ranks: Ranks
) -> Iterator[Pair]:
    """The records with their scores, in order; nothing on the other ranks than 0."""
    if config.model is None:
        if ranks.first:
            for record in read_all(data, config.read, skipped):
                yield record, scores_of(record, ", ".join(data), ", or give --model")
        return
    from pqm_fast.scoring.run import score_records

    own = score_records(config.model, data, config.read, config.scoring, skipped, cut, ranks=ranks)
    by_rank = ranks.gather({record.id: scores for record, scores in own})
    if ranks.first:
        by_id = {id: scores for share in by_rank for id, scores in share.items()}
        for record in read_all(data, config.read, SkipSummary()):
            if record.id in by_id:
                cut.add(by_id[record.id])
                yield record, by_id[record.id]
