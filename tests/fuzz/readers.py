"""Hostile data files: one from a seed, and what must hold when it is read, encoded and packed."""

import copy
import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import tiny
from valid_records import VALID

from pqm_fast.data.encode import Encoded, Encoder, Template
from pqm_fast.data.formats import FORMATS, ReadOptions
from pqm_fast.data.pack import pack
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError

ENCODER = Encoder(tiny.tokenizer(), Template(step_token="last"), 24)
TEXTS = (
    "",
    " ",
    "\n\n",
    "Step 1:",
    "ки",
    " ки\n",
    "+",
    "-",
    "w5 w6",
    "a\u2028b",
    "\ud800",
    "\x00",
    "é" * 40,
    "N/A",
    "[1]",
)
NUMBERS = (0, 1, -1, 2, 0.5, -0.0, 1e308, 10**400, float("nan"), float("inf"), True, False)
NUMBER = "raw_number"  # the field that tells which raw record a record is of: formats keep what they do not know


def hostile(seed: int, folder: Path) -> None:
    """Writes a file made from `seed` and reads it, skipping bad records.

    Raises whatever is no `PQMError`, and AssertionError where a raw record is neither read nor counted as skipped, a
    record is unsound or cannot be written back, or a step is lost on the way into a batch.
    """
    rng = random.Random(seed)
    path = folder / rng.choice(("f.jsonl", "f.json", "f.parquet", "f"))
    whole = _write(rng, path)
    skipped = SkipSummary()
    records = []
    try:
        for record in read_all([path], _options(rng), skipped):
            assert record.prompt.strip()
            assert record.steps
            assert all(step.strip() for step in record.steps)
            assert record.labels is None or len(record.labels) == len(record.steps)
            assert all(label is None or 0 <= label <= 1 for label in record.labels or [])
            json.dumps([record.id, record.prompt, record.steps, record.extra], ensure_ascii=False).encode()
            records.append(record)
    except PQMError as error:
        str(error).encode()
        if "no usable record: all are bad" not in str(error):
            return  # the file as a whole cannot be read
        assert not records
    if whole is not None:
        assert len({record.extra[NUMBER] for record in records}) + skipped.total == whole
    _pack(rng, records)


def _pack(rng: random.Random, records: list[Any]) -> None:
    encoded = ENCODER(records)
    assert len(encoded) == len(records)
    trajectories = []
    for record, found in zip(records, encoded, strict=True):
        if not isinstance(found, Encoded):
            assert isinstance(found, PQMError)
            continue
        kept = len(found.step_tokens)
        assert kept + found.steps_cut == len(record.steps)
        labels = np.array((record.labels or [None] * kept)[:kept], dtype=np.float32)
        trajectories.append(Trajectory(found.input_ids, found.step_tokens, labels))
    for question in (None, np.array([rng.randrange(2) for _ in trajectories], dtype=np.int64)):
        for labelled in (True, False):
            batch = pack(enumerate(trajectories), question=question, labelled_only=labelled)
            labels = np.concatenate([np.zeros(0), *(t.labels for t in trajectories)])
            expected = labels[~np.isnan(labels)] if labelled else labels
            np.testing.assert_array_equal(np.sort(batch.labels.numpy()), np.sort(expected))


def _options(rng: random.Random) -> ReadOptions:
    return ReadOptions(
        format=rng.choice(list(FORMATS)) if rng.random() < 0.1 else "auto",
        neutral=rng.choice(("correct", "wrong", "unlabelled")),
        after_error=rng.choice(("unlabelled", "wrong")),
        step_marker=rng.choice(("ки", "ки", "ки", "ки", "\n\n", "\n", "Step")),
        field=rng.choice((["id=idx"], ["prompt=problem"], ["prompt=a.b", "labels=value"]))
        if rng.random() < 0.1
        else [],
        label_map="-1=0,0=null,1=1,+=1,-=0,0.25=0.25" if rng.random() < 0.2 else None,
        skip_bad=True,
    )


def _write(rng: random.Random, path: Path) -> int | None:
    """Returns how many raw records the file holds if that is known, whatever they are worth."""
    if rng.random() < 0.08:
        path.write_bytes(
            rng.choice((b"", b"PAR1", b"\x1f\x8b\x08", b"[", b"{", b"\n")) + rng.randbytes(rng.randrange(60))
        )
        return None
    raws = _raws(rng)
    if rng.random() < 0.12:
        _write_table(raws, path)
        return _damaged(rng, path) if rng.random() < 0.6 else len(raws)
    lines = [json.dumps(raw).replace(" ", "  " if rng.random() < 0.1 else " ") for raw in raws]
    as_list = rng.random() < 0.2
    content = ("[" + ",\n".join(lines) + "]" if as_list else "\n".join(lines)).encode()
    path.write_bytes(gzip.compress(content, 1) if rng.random() < 0.1 else content)
    if not as_list and isinstance(raws[0], list):
        return None  # JSON lines that begin with a list are read as one
    return _damaged(rng, path) if rng.random() < 0.1 else len(raws)


def _raws(rng: random.Random) -> list[Any]:
    names = rng.choices(list(VALID), k=2)
    raws: list[Any] = []
    for number in range(rng.randint(1, 4)):
        raw: Any = copy.deepcopy(VALID[names[rng.random() < 0.1]])
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
            _mutate(rng, raw)
        if rng.random() < 0.05:
            raw = _value(rng)
        if isinstance(raw, dict):
            raw = {**raw, NUMBER: number}
        raws.append(raw)
    return raws


def _mutate(rng: random.Random, value: Any) -> None:
    """One change somewhere inside an object or a list: another value, one fewer, one twice, or a cut text."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(value[key], (dict, list)) or rng.random() < 0.2:
            break
        value = value[key]
    how = rng.randrange(4)
    if how == 0:
        del value[key]
    elif how == 1 and isinstance(value, list):
        value.insert(key, copy.deepcopy(value[key]))
    elif how == 2 and isinstance(value[key], str):
        at = rng.randrange(len(value[key]) + 1)
        value[key] = value[key][:at] + rng.choice(TEXTS) + value[key][at + rng.randrange(9) :]
    else:
        value[key] = _value(rng)


def _value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 3 else 4)
    if kind < 2:
        return rng.choice(TEXTS)
    if kind < 4:
        return rng.choice(NUMBERS) if rng.random() < 0.8 else None
    if kind < 6:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 7:
        return {rng.choice(("text", "label", "steps", "a", "b", "role")): _value(rng, depth + 1) for _ in range(3)}
    inside: Any = 0
    for _ in range(rng.choice((3, 99, 150))):
        inside = [inside]
    return inside


def _write_table(raws: list[Any], path: Path) -> None:
    """As Parquet: a column of text per field, in the file's own words where its values are no text, some not UTF-8."""
    names = dict.fromkeys(key for raw in raws if isinstance(raw, dict) for key in raw)
    columns = {}
    for name in names:
        if name == NUMBER:
            columns[name] = pyarrow.array([raw.get(name) if isinstance(raw, dict) else -1 for raw in raws])
            continue
        cells = [raw.get(name) if isinstance(raw, dict) else None for raw in raws]
        if all(cell is None or (isinstance(cell, list) and all(isinstance(v, str) for v in cell)) for cell in cells):
            encoded = [None if cell is None else [_bytes(v) for v in cell] for cell in cells]
            columns[_name(name)] = pyarrow.array(encoded, pyarrow.list_(pyarrow.binary())).view(
                pyarrow.list_(pyarrow.string())
            )
        else:
            encoded = [
                None if cell is None else _bytes(cell if isinstance(cell, str) else repr(cell)) for cell in cells
            ]
            columns[_name(name)] = pyarrow.array(encoded, pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _name(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _damaged(rng: random.Random, path: Path) -> None:
    """Some bytes changed, or the end cut off."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        if content and rng.random() < 0.5:
            content[rng.randrange(len(content))] = rng.randrange(256)
        else:
            del content[rng.randrange(len(content) + 1) :]
    path.write_bytes(bytes(content))
