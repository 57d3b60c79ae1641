"""Damaged checkpoints: one file of a run changed from a seed, and what must hold when it is loaded."""

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import save

from pqm_fast.common.checksums import SUMS_FILE, write_sums
from pqm_fast.data.encode import Template
from pqm_fast.errors import PQMError
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.ranks.group import ALONE
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.train.checkpoint import FILES, CheckpointWriter, load_checkpoint
from pqm_fast.train.guard import StepGuard
from pqm_fast.train.resume import newest_intact
from pqm_fast.train.sharding import parts
from pqm_fast.train.training_state import TrainingState

# no large ones: a model of 10^9 layers is built until the memory is full
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    64,
    0.5,
    -2.5,
    1e30,
    float("nan"),
    "",
    "x",
    "1",
    [],
    [1],
    {},
    {"a": 1},
    "\0",
)
STATE = {"total_steps": 9, "micro_batch_tokens": 64, "micro_batches": 1, "ranks": 1, "dtype": "float32"}


class Victim:
    """A run folder with a finished model and the checkpoints of steps 1 and 2; each input damages it and mends it."""

    def __init__(self, folder: Path):
        self.run = folder / "run"
        tiny.model_folder(self.run, num_hidden_layers=1)
        self.model = StepQModel.from_pretrained(str(self.run))
        self.model.save(self.run, tiny.tokenizer(90), Recipe(Template(step_token="last")), torch.float32)
        self.checkpoints = self.run / "checkpoints"
        for step in (1, 2):
            state = {
                "step": step,
                "model": {"config": {}, "weights": {}},
                "options": {},
                "recipe": {},
                "left_out": {},
                **STATE,
            }
            CheckpointWriter(self.checkpoints, ALONE, 2, ahead=False).save(self.training(), state)
        self.newest = self.checkpoints / "step-0000002"
        self.files = {path: path.read_bytes() for path in self.run.rglob("*") if path.is_file()}

    def training(self) -> TrainingState:
        own = parts(self.model)
        optimizer = torch.optim.AdamW([part.local for part in own])
        return TrainingState(self.model, optimizer, own, StepGuard(0.0, "cpu"))

    def attack(self, seed: int) -> None:
        """Raises whatever is no PQMError, and AssertionError if what is damaged is used without a word."""
        rng = random.Random(seed)
        folder = self.newest if rng.random() < 0.8 else self.run
        file = rng.choice([path for path in self.files if path.parent == folder])
        self._damage(rng, file)
        # as by someone who writes checksums of what he has made; loading takes long
        forged = file.name != SUMS_FILE and rng.random() < (0.3 if folder == self.newest else 0.4)
        try:
            if forged and file.exists():
                write_sums(folder)
            if folder == self.newest:
                self._resume(changed=not forged and self._changed(file))
            else:
                self._score(changed=not forged and file.name != SUMS_FILE and self._changed(file))
        finally:
            for path in (file, folder / SUMS_FILE):
                path.write_bytes(self.files[path])

    def _changed(self, file: Path) -> bool:
        return not file.exists() or file.read_bytes() != self.files[file]

    def _resume(self, changed: bool) -> None:
        found, damaged = newest_intact(self.checkpoints)
        assert found is not None
        if found.path != self.newest:
            assert list(damaged) == [self.newest]
            return
        # damage of the list of checksums that leaves each file its own is none
        assert not changed or all((self.newest / name).read_bytes() == self.files[self.newest / name] for name in FILES)
        with suppress(PQMError):
            load_checkpoint(found, self.training(), ALONE)

    def _score(self, changed: bool) -> None:
        try:
            Scorer.from_pretrained(self.run, device="cpu", dtype="float32").score([("w3 w4", ["w5", "w6 w7"])])
        except PQMError:
            return
        assert not changed, "damaged files were used"

    def _damage(self, rng: random.Random, file: Path) -> None:
        data = bytearray(self.files[file])
        kind = rng.choice(("flip", "cut", "longer", "swap", "json", "safetensors", "missing", *["value"] * 5))
        if kind == "value" and file.suffix == ".json":
            file.write_text(json.dumps(_mutated(rng, json.loads(data))))
        elif kind in ("flip", "value"):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
        elif kind == "cut":
            file.write_bytes(data[: rng.randrange(len(data))])
        elif kind == "longer":
            file.write_bytes(data + rng.randbytes(rng.randrange(1, 99)))
        elif kind == "swap":
            file.write_bytes(self.files[rng.choice(list(self.files))])
        elif kind == "json":
            file.write_text(json.dumps(rng.choice(VALUES)))
        elif kind == "safetensors":
            header = rng.choice((b"", (2**63).to_bytes(8, "little"), (10).to_bytes(8, "little") + b'{"a":[1,2]'))
            file.write_bytes(header or save({rng.choice(("score.weight", "x")): torch.ones(rng.randrange(5))}))
        else:
            file.unlink()


def _mutated(rng: random.Random, value: Any) -> Any:
    """With one entry, however deep, changed, gone or new."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value, dict) and rng.random() < 0.1:
        del value[key]
    else:
        value[key] = _mutated(rng, value[key]) if rng.random() < 0.7 else rng.choice(VALUES)
    return value
