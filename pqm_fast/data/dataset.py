"""TrajectoryDataset: tokenised trajectories on disk, read through memory maps, so that any number fits."""

import json
from pathlib import Path

import numpy as np

from pqm_fast.data.trajectory import Trajectory

# File name -> dtype. `ids` [tokens], `rows` (step tokens) [steps], `labels` [steps] and `names` [bytes] are flat; each
# `*_end` [N] holds the end of every trajectory's part. These names are part of the format (`LAYOUT` in token_cache.py).
COLUMNS = {
    "ids": np.int32,
    "ids_end": np.int64,
    "rows": np.int32,
    "labels": np.float32,
    "steps_end": np.int64,
    "steps_cut": np.int32,
    "question": np.uint64,
    "outcome": np.float32,
    "names": np.uint8,
    "names_end": np.int64,
}
INFO = "info.json"


class TrajectoryDataset:
    """Trajectories, `dataset[i]` -> Trajectory. `notes` is what a user should know about how it was made.

    Its pickle is the path of its folder: another process maps the same files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # plain arrays, because slicing an np.memmap takes several times as long
        self.columns = {
            name: np.asarray(np.memmap(folder / name, dtype=dtype, mode="r"))
            if (folder / name).stat().st_size
            else np.zeros(0, dtype)
            for name, dtype in COLUMNS.items()
        }
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        self.notes: list[str] = info["notes"]
        self.digest: str = info["digest"]
        """A digest of all that is stored except outcomes: tokens, step tokens, labels, questions and record ids."""

    def __reduce__(self) -> tuple[type["TrajectoryDataset"], tuple[Path]]:
        return TrajectoryDataset, (self.folder.absolute(),)

    def __len__(self) -> int:
        return len(self.columns["question"])

    def _part(self, flat: str, end: str, i: int) -> np.ndarray:
        ends = self.columns[end]
        return self.columns[flat][ends[i - 1] if i else 0 : ends[i]]

    def __getitem__(self, i: int) -> Trajectory:
        return Trajectory(
            input_ids=self._part("ids", "ids_end", i),
            step_tokens=self._part("rows", "steps_end", i),
            labels=self._part("labels", "steps_end", i),
            outcome=float(self.columns["outcome"][i]),
        )

    def steps_of(self, i: int) -> np.ndarray:
        """The entries of the flat column `labels` that are steps of trajectory i [K] int64, as numbers."""
        ends = self.columns["steps_end"]
        return np.arange(ends[i - 1] if i else 0, ends[i])

    def labelled_steps(self) -> np.ndarray:
        """The number of steps with a label of each trajectory [N] int64."""
        labelled = np.cumsum(~np.isnan(self.columns["labels"]))
        return np.diff(np.append(0, labelled)[self.columns["steps_end"]], prepend=0)

    def name(self, i: int) -> str:
        """The record id of trajectory i."""
        return self._part("names", "names_end", i).tobytes().decode()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each trajectory [N] int64."""
        return np.diff(self.columns["ids_end"], prepend=0)

    @property
    def question(self) -> np.ndarray:
        """The question number of each trajectory [N] uint64: equal for equal questions."""
        return self.columns["question"]

    @property
    def outcome(self) -> np.ndarray:
        """Whether each solution is right according to its record [N] float32: 1 right, 0 wrong, NaN unknown. All are
        unknown if the data set was made without a judge."""
        return self.columns["outcome"]

    @property
    def steps_cut(self) -> np.ndarray:
        """Steps of each trajectory that did not fit the context [N] int32."""
        return self.columns["steps_cut"]

    def trajectory_of_step(self, step: int) -> int:
        """The trajectory that an entry of the flat column `labels` belongs to."""
        return int(np.searchsorted(self.columns["steps_end"], step, side="right"))
