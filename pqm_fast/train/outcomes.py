"""Whether the solutions of a data set are right: as their records say, or as their step labels tell."""

import hashlib

import numpy as np

from pqm_fast.data.dataset import TrajectoryDataset
from pqm_fast.data.read import SkipSummary
from pqm_fast.errors import PQMError
from pqm_fast.train.config import TrainConfig


def known_outcomes(dataset: TrajectoryDataset, label_threshold: float | None) -> np.ndarray:
    """[N] float32: 1 for a right solution, 0 for a wrong one (from 0.5 on, numbers between them count as right), NaN if
    that is unknown.

    What the record says counts. If it says nothing, a solution with a step labelled below `label_threshold` (None: 0.5)
    is wrong, and one without such a step is right if every step has a label. A solution whose end was cut off has no
    score to compare, so its outcome counts as unknown.
    """
    threshold = 0.5 if label_threshold is None else label_threshold
    labels = dataset.columns["labels"]
    is_wrong, unlabelled = _any_step(dataset, labels < threshold), _any_step(dataset, np.isnan(labels))
    from_labels = np.where(is_wrong, 0.0, np.where(unlabelled, np.nan, 1.0))
    outcomes = np.where(np.isnan(dataset.outcome), from_labels, dataset.outcome)
    return np.where(dataset.steps_cut > 0, np.nan, outcomes).astype(np.float32)


def with_outcome(
    dataset: TrajectoryDataset, outcomes: np.ndarray, paths: tuple[str, ...], config: TrainConfig, notes: list[str]
) -> np.ndarray:
    """The trajectories [N] int64 whose outcome is known.

    Raises PQMError for a record that does not tell it; with `skip_bad` these are counted in `notes`. So are those whose
    end was cut off.
    """
    unknown = np.isnan(outcomes)
    cut = unknown & (dataset.steps_cut > 0)
    skipped, names = SkipSummary(), ", ".join(paths)
    for i in np.flatnonzero(unknown & ~cut).tolist():
        problem = (
            f"record {dataset.name(i)}: nothing tells whether its solution is right, which the loss {config.loss} "
            "needs; add `correct`, the right `answer`, or a label for every step"
        )
        if not config.read.skip_bad:
            raise PQMError(f"{names}: {problem}; or leave such records out with --skip-bad")
        skipped.add("unknown outcome", problem)
    told = [str(skipped)] if skipped.total else []
    if cut.any():
        told.append(
            f"{cut.sum():,} trajectories left out: their end was cut off, so that they have no score to compare; raise "
            "--max-length"
        )
    if unknown.all():
        raise PQMError(f"{names}: no usable record. {'. '.join(told)}")
    notes.extend(told)
    return np.flatnonzero(~unknown)


def _any_step(dataset: TrajectoryDataset, flags: np.ndarray) -> np.ndarray:
    """[N] bool: whether any step of each trajectory has its entry of `flags` [steps] set."""
    flagged_before = np.concatenate([[0], np.cumsum(flags)])
    return np.diff(flagged_before[dataset.columns["steps_end"]], prepend=0) > 0


def outcomes_digest(outcomes: np.ndarray | None) -> str | None:
    """A digest of outcomes [N]; None if there are none."""
    return None if outcomes is None else hashlib.blake2b(outcomes.tobytes(), digest_size=16).hexdigest()
