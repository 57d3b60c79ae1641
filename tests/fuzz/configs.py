"""Options of `train` that nobody should give: a file and a command line from a seed, and what must come of them."""

import io
import json
import random
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from pqm_fast.arguments import parse
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.train.config import TrainConfig

NAMES = [field.name for kind in (TrainConfig, ReadOptions, Template) for field in fields(kind)]
GOOD = {"model": "m", "data": ["d.jsonl"], "out": "o"}
NUMBERS = (0, 1, -1, 7, 0.5, -0.0, 1e308, 10**400, 2**63, float("nan"), float("inf"))
TEXTS = (
    "",
    " ",
    "auto",
    "all",
    "rank",
    "bce",
    "x",
    "1e3",
    "--help",
    "--out",
    "-1",
    "{step}",
    "\0",
    "\ud800",
    "a\nb",
    "é",
)
OTHERS = (None, True, False, [], {}, [[1]], [None], {"a": {"b": 1}}, ["x", 1], {"template": 3})
TAGS = ("!!python/object:os.system", "!!binary", "!!set", "!unknown", "!!timestamp", "!!int", "!!float")


def hostile(seed: int, folder: Path) -> TrainConfig | None:
    """Parses options made from `seed`. None if they were refused as they should be, by PQMError or with a usage error;
    raises whatever else comes."""
    rng = random.Random(seed)
    arguments = []
    if rng.random() < 0.8:
        file = folder / "options.yaml"
        file.write_bytes(_file(rng))
        arguments += ["--config", str(file)]
    if not arguments or rng.random() < 0.5:
        given = GOOD if rng.random() < 0.7 else {}
        arguments += [text for name, value in given.items() for text in (f"--{name}", *_listed(value))]
        for _ in range(rng.randrange(3)):
            arguments.append(f"--{rng.choice(NAMES).replace('_', '-')}")
            arguments += map(str, _listed(_value(rng)))
    said = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")  # as Python sets up stderr
    try:
        with redirect_stderr(said), redirect_stdout(said):
            config = parse(TrainConfig, "train", arguments)
    except PQMError:
        return None
    except SystemExit as exit:
        if exit.code not in (0, 2):  # --help, and an error of usage
            raise
        return None
    assert isinstance(config, TrainConfig)
    return config


def _file(rng: random.Random) -> bytes:
    options: Any = (GOOD if rng.random() < 0.7 else {}) | {
        rng.choice(NAMES): _value(rng) for _ in range(rng.randrange(4))
    }
    if rng.random() < 0.2:
        options = rng.choice((options, [options], {"template": options}, {"": options}, {1: 2}, _value(rng)))
    text = json.dumps(options) if rng.random() < 0.5 else yaml.safe_dump(options, allow_unicode=True)
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    kind = rng.random()
    if kind < 0.15 and data:
        data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind < 0.2:
        data = data[: rng.randrange(len(data) + 1)]
    elif kind < 0.25:
        data += f"\nseed: {rng.choice(TAGS)} x\n".encode()
    return bytes(data)


def _value(rng: random.Random) -> Any:
    return rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS)))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
