"""Trying what may fail or not fit: a failure is told and recorded, and the others are measured all the same."""

import gc
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from pqm_fast.errors import PQMError

OUT_OF_MEMORY = "out of memory"


def attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """(result, None), or (None, why there is none): a way that fails must not end the measurement of the others."""
    try:
        return work(), None
    except PQMError as error:  # ours, and it says it all
        return None, str(error)
    except Exception as error:  # whatever another's model raises; what it was stands in the results
        # with nothing left, CUDA, Triton and cuBLAS fail in words of their own
        signs = (OUT_OF_MEMORY, "cublas_status_alloc_failed")
        if isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in signs):
            return None, OUT_OF_MEMORY
        traceback.print_exc()
        return None, f"{type(error).__name__}: {error}"


def attempt_alone(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """The same, and nothing of it stays on the device."""
    try:
        return attempt(work)
    finally:
        release()


def release() -> None:
    """Gives back what a way held: models, cached memory, compiled code."""
    torch.compiler.reset()
    # a backward that failed leaves tasks, and with them its graph, in the engine's queue until the next one runs
    torch.zeros((), requires_grad=True).mul(1.0).backward()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def try_settings(
    families: Sequence[Sequence[dict[str, Any]]], run: Callable[[dict[str, Any]], dict[str, Any]], tries: int
) -> list[dict[str, Any]]:
    """Runs one setting after the other, within a family from large batches to small ones until that is slower, or
    `tries` have run.

    `run` returns {"seconds", and what else is to be kept}. Returns that with {"setting", "why"} for each setting: why
    there is nothing else and `seconds` is None.
    """
    tried: list[dict[str, Any]] = []
    for family in families:
        for setting in family:
            if len(fastest(tried)) == tries:
                return tried
            least = min((t["seconds"] for t in tried if t["seconds"]), default=None)
            found, why = attempt_alone(partial(run, setting))
            tried.append({"setting": setting, "seconds": None, "why": why} | (found or {}))
            if found and least and found["seconds"] > least:
                break
            if not found and why != OUT_OF_MEMORY:
                return tried  # smaller batches would not mend that
    return tried


def fastest(tried: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings that ran, the fastest first."""
    return [t["setting"] for t in sorted((t for t in tried if t["seconds"]), key=lambda t: t["seconds"])]
