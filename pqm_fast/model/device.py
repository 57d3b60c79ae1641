"""Chooses the device that a model runs on, and the dtype that it runs in."""

import time
from functools import cache
from typing import get_args

import torch
import torch.nn.functional as F

from pqm_fast.common.options import DType
from pqm_fast.errors import PQMError
from pqm_fast.model.loading import load_config, short_reason

# On a CPU, narrower models gain nothing from bfloat16.
MIN_BFLOAT16_WIDTH = 256
# Matrix products must be this many times as fast in bfloat16, because all other work gains less or nothing.
MIN_BFLOAT16_GAIN = 1.5
MEASURED_ROWS, MEASURED_TRIES = 128, 4


def pick_device(name: str) -> torch.device:
    """Returns the named device; `auto` is cuda if available, otherwise cpu. Raises PQMError for a device that cannot be
    used here."""
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
    """Returns the torch dtype of that name. `auto` is bfloat16 on a GPU, and on a CPU that is clearly faster in it at
    the size of the model in `path` (a folder or hub id); otherwise float32.

    A measurement is described in `notes`. Raises PQMError for an unknown name and, with `auto` on a CPU, for a model
    that is not a decoder.
    """
    if name not in get_args(DType):
        raise PQMError(f"dtype: {name!r} was given; give {', '.join(get_args(DType))}")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16
    config = load_config(path).get_text_config()
    if device.type != "cpu" or config.hidden_size < MIN_BFLOAT16_WIDTH:
        return torch.float32
    inner = getattr(config, "intermediate_size", None)  # GPT-2 has none, Gemma 3n has one for each layer
    gain = bfloat16_gain(config.hidden_size, inner if isinstance(inner, int) else 4 * config.hidden_size)
    picked = torch.bfloat16 if gain >= MIN_BFLOAT16_GAIN else torch.float32
    if notes is not None:
        notes.append(
            f"dtype {dtype_name(picked)}: this CPU multiplies {gain:.1f} times as fast in bfloat16 as in float32"
        )
    return picked


@cache
def bfloat16_gain(width: int, inner: int) -> float:
    """How many times as fast this CPU multiplies rows by a [width, inner] matrix in bfloat16 as in float32."""
    shortest = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(MEASURED_ROWS, width, dtype=dtype), torch.ones(inner, width, dtype=dtype)
        seconds = []
        for _ in range(MEASURED_TRIES):
            started = time.perf_counter()
            F.linear(rows, weight)
            seconds.append(time.perf_counter() - started)
        shortest[dtype] = min(seconds)
    return shortest[torch.float32] / shortest[torch.bfloat16]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in options and files, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")
