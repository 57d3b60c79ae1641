"""--exclude: ids of records that a run leaves out."""

import hashlib
from pathlib import Path

import numpy as np

from pqm_fast.data.dataset import TrajectoryDataset
from pqm_fast.errors import PQMError

SHOWN = 5  # ids that a message lists


def read_excluded(file: str) -> set[str]:
    """The ids in a file, one a line; blank lines do not count. Raises PQMError if it cannot be read or has none."""
    try:
        ids = {line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
        raise PQMError(f"exclude: {file}: cannot be read ({reason}); give a file with one record id a line") from error
    if not ids:
        raise PQMError(f"exclude: {file}: holds no id; give a file with one record id a line, or leave the option out")
    return ids


def excluded_digest(file: str | None) -> str | None:
    """A digest of the ids in a file, whatever their order; None without a file."""
    return None if file is None else hashlib.sha256("\n".join(sorted(read_excluded(file))).encode()).hexdigest()[:16]


def without_excluded(
    dataset: TrajectoryDataset, indices: np.ndarray, ids: set[str], file: str, notes: list[str]
) -> np.ndarray:
    """The trajectories of `indices` whose records are not among `ids`. `notes` gets how many were left out. Raises
    PQMError for an id that no record of the data has."""
    names = [dataset.name(i) for i in range(len(dataset))]
    if unknown := sorted(ids.difference(names)):
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise PQMError(
            f"exclude: {file}: no record of the training data has the id {', '.join(unknown[:SHOWN])}{more}; take it "
            "out, or check the file"
        )
    kept = indices[[names[i] not in ids for i in indices.tolist()]]
    notes.append(f"{len(indices) - len(kept):,} trajectories left out: {file} names them")
    return kept
