"""The device and the dtype that a model runs in."""

import time
from functools import cache
from typing import get_args

import torch
import torch.nn.functional as F

from pqm_fast.common.options import DType
from pqm_fast.errors import PQMError
from pqm_fast.model.loading import load_config, short_reason

# On a CPU, models less wide gain nothing from bfloat16.
LEAST_WIDTH = 256
# Products must be so many times as fast in bfloat16: all other work gains less from it, or nothing.
CLEARLY_FASTER = 1.5


def pick_device(name: str) -> torch.device:
    """`auto`: cuda if there is one, otherwise cpu. Raises PQMError for a device that cannot be used here."""
    if not isinstance(name, (str, torch.device)):
        raise PQMError(f"device: {name!r} ({type(name).__name__}) was given; give auto, cpu or cuda")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PQMError(f"device: {name} cannot be used here ({short_reason(error)}); give auto, cpu or cuda") from error
    return device


def pick_dtype(name: str, device: torch.device, path: str, notes: list[str] | None = None) -> torch.dtype:
    """A name of torch's, or `auto`: bfloat16 on a GPU, and on a CPU that is clearly faster in it at the size of the
    model of folder or hub id `path`; otherwise float32.

    `notes` is told what was measured. Raises PQMError for a model that is no decoder.
    """
    if name not in get_args(DType):
        raise PQMError(f"dtype: {name!r} was given; give {', '.join(get_args(DType))}")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16
    config = load_config(path).get_text_config()
    if device.type != "cpu" or config.hidden_size < LEAST_WIDTH:
        return torch.float32
    inner = getattr(config, "intermediate_size", None)  # GPT-2 has none, Gemma 3n one for each layer
    gain = bfloat16_gain(config.hidden_size, inner if isinstance(inner, int) else 4 * config.hidden_size)
    picked = torch.bfloat16 if gain >= CLEARLY_FASTER else torch.float32
    if notes is not None:
        notes.append(
            f"dtype {dtype_name(picked)}: this CPU multiplies {gain:.1f} times as fast in bfloat16 as in float32"
        )
    return picked


@cache
def bfloat16_gain(width: int, inner: int) -> float:
    """How many times as fast this CPU multiplies some rows by a [width, inner] matrix in bfloat16 as in float32."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(128, width, dtype=dtype), torch.ones(inner, width, dtype=dtype)
        seconds = []
        for _ in range(4):
            started = time.perf_counter()
            F.linear(rows, weight)
            seconds.append(time.perf_counter() - started)
        best[dtype] = min(seconds)
    return best[torch.float32] / best[torch.bfloat16]


def dtype_name(dtype: torch.dtype) -> str:
    """As in options and files."""
    return str(dtype).removeprefix("torch.")
