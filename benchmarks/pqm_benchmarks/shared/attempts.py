"""Work that may fail or not fit. The failure is printed and recorded, and everything else is still measured."""

import gc
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from pqm_fast.errors import PQMError

OUT_OF_MEMORY = "out of memory"


def attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """(result, None), or (None, the reason of the failure)."""
    try:
        return work(), None
    except PQMError as error:  # one of our own messages, which needs no traceback
        return None, str(error)
    except Exception as error:  # a third-party model may raise anything; the type and message go into the results
        # with no memory left, CUDA, Triton and cuBLAS fail with messages of their own
        signs = (OUT_OF_MEMORY, "cublas_status_alloc_failed")
        if isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in signs):
            return None, OUT_OF_MEMORY
        traceback.print_exc()
        return None, f"{type(error).__name__}: {error}"


def attempt_alone(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """Does the same as `attempt`, and leaves nothing of the work on the device."""
    try:
        return attempt(work)
    finally:
        release()


def release() -> None:
    """Frees what a way held: models, cached memory, compiled code."""
    torch.compiler.reset()
    # a backward that failed leaves tasks, and with them its graph, in the engine's queue until the next one runs
    torch.zeros((), requires_grad=True).mul(1.0).backward()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def try_settings(
    families: Sequence[Sequence[dict[str, Any]]], run: Callable[[dict[str, Any]], dict[str, Any]], tries: int
) -> list[dict[str, Any]]:
    """Runs one setting after the other, until `tries` of them have run. Within a family the batches get smaller; the
    rest of a family is skipped once a smaller batch is slower.

    `run` returns {"seconds": ..., further results}. Returns, for each setting that was tried, these results with
    "setting" and "why": the reason if it failed, in which case `seconds` is None.
    """
    tried: list[dict[str, Any]] = []
    for family in families:
        for setting in family:
            if len(fastest(tried)) == tries:
                return tried
            least = min((t["seconds"] for t in tried if t["seconds"]), default=None)
            result, why = attempt_alone(partial(run, setting))
            tried.append({"setting": setting, "seconds": None, "why": why} | (result or {}))
            if result and least and result["seconds"] > least:
                break
            if not result and why != OUT_OF_MEMORY:
                return tried  # smaller batches would fail as well
    return tried


def fastest(tried: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings that ran, the fastest first."""
    return [t["setting"] for t in sorted((t for t in tried if t["seconds"]), key=lambda t: t["seconds"])]
