"""The kernels of the op with other tiles, at the sizes that the targets are for: results must stay right."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from pqm_kernels.fused_step_loss import backward, forward

from pqm_benchmarks.gpu.job import Job
from pqm_benchmarks.kernels.implementations import check, fused
from pqm_benchmarks.kernels.inputs import SIZES, Inputs, count_inputs, make_inputs
from pqm_benchmarks.shared.attempts import attempt
from pqm_benchmarks.shared.timing import gpu_seconds, wall_seconds

VARIANTS: dict[str, dict[Any, dict[str, Any]]] = {
    "as it is": {},
    "forward: half as many steps a tile": {forward: {"STEPS_PER_TILE": 4}},
    "forward: many programs as few are": {forward: {"FOR_MANY_PROGRAMS": forward.FOR_FEW_PROGRAMS}},
    "forward: few programs as many are": {forward: {"FOR_FEW_PROGRAMS": forward.FOR_MANY_PROGRAMS}},
    "forward: 16 steps a program": {forward: {"STEPS_PER_PROGRAM": 16}},
    "backward: half as wide": {backward: {"TILE_WIDTH": 512}},
}
"""What each changes, by module."""
WIDTH = 4096


def tiles(job: Job) -> None:
    """Stores GPU time (on a CPU wall time) of each variant, forward and both passes. What fails or is wrong is left
    out."""
    device = torch.device(job.device)
    dtype = torch.bfloat16 if job.on_gpu else torch.float32
    width = WIDTH if job.on_gpu else 64
    times: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    for size in ("training", "bandwidth") if job.on_gpu else ("tiny",):
        count = count_inputs(SIZES[size], width, dtype, device)
        inputs = [make_inputs(SIZES[size], width, dtype, device, 0, i) for i in range(count)]
        for name, changes in VARIANTS.items():
            case = f"{size}, D {width}, {name}"
            with changed(changes):
                found, why = attempt(partial(_times, inputs, device))
            if why is not None:
                left_out[case] = why
            else:
                times[case] = found
                print(f"{case}: {', '.join(f'{what} {us:,.1f} us' for what, us in found.items())}", flush=True)
            job.store(headline=f"{len(times)} cases, {_best(times)}", us=times, left_out=left_out)
        del inputs


@contextmanager
def changed(changes: dict[Any, dict[str, Any]]) -> Iterator[None]:
    """Constants of the modules are others for a while."""
    before = {module: {name: getattr(module, name) for name in own} for module, own in changes.items()}
    try:
        for module, own in changes.items():
            vars(module).update(own)
        yield
    finally:
        for module, own in before.items():
            vars(module).update(own)


def _times(inputs: list[Inputs], device: torch.device) -> dict[str, float]:
    calls = [fused(each, "rank", True) for each in inputs]
    check("fused", calls[0], inputs[0], "rank", True)
    found = {}
    for what, runs in (
        ("forward", [call.forward for call in calls]),
        ("forward+backward", [call.forward_backward for call in calls]),
    ):
        seconds = gpu_seconds(runs, 50)[0] if device.type == "cuda" else wall_seconds(runs, 1, device)
        found[what] = 1e6 * seconds
    return found


def _best(times: dict[str, dict[str, float]]) -> str:
    """Over what the kernels have now, forward + backward, of the same size."""
    gains = []
    for case, found in times.items():
        size, _, name = case.rpartition(", ")
        now = times.get(f"{size}, as it is")
        if now and name != "as it is":
            gains.append((now["forward+backward"] / found["forward+backward"], case))
    return f"best {max(gains)[1]} ({max(gains)[0]:.2f}x)" if gains else "nothing to compare yet"
