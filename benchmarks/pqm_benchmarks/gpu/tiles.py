"""Times the kernels of the op with other tiles, at the sizes of the targets. Results must stay right."""

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
"""The constants that each variant changes, by module."""
WIDTH = 4096


def tiles(job: Job) -> None:
    """Stores the GPU time (on a CPU the wall time) of each variant, for the forward pass and for both passes. Variants
    that fail or are wrong are left out."""
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
                of_case, why = attempt(partial(_times, inputs, device))
            if why is not None:
                left_out[case] = why
            else:
                times[case] = of_case
                print(f"{case}: {', '.join(f'{name} {us:,.1f} us' for name, us in of_case.items())}", flush=True)
            job.store(headline=f"{len(times)} cases, {_best(times)}", us=times, left_out=left_out)
        del inputs


@contextmanager
def changed(changes: dict[Any, dict[str, Any]]) -> Iterator[None]:
    """Changes constants of modules inside the `with` block."""
    before = {module: {name: getattr(module, name) for name in constants} for module, constants in changes.items()}
    try:
        for module, constants in changes.items():
            vars(module).update(constants)
        yield
    finally:
        for module, constants in before.items():
            vars(module).update(constants)


def _times(inputs: list[Inputs], device: torch.device) -> dict[str, float]:
    """Microseconds by pass."""
    calls = [fused(batch, "rank", True) for batch in inputs]
    check("fused", calls[0], inputs[0], "rank", True)
    times = {}
    for name, runs in (
        ("forward", [call.forward for call in calls]),
        ("forward+backward", [call.forward_backward for call in calls]),
    ):
        seconds = gpu_seconds(runs, 50)[0] if device.type == "cuda" else wall_seconds(runs, 1, device)
        times[name] = 1e6 * seconds
    return times


def _best(times: dict[str, dict[str, float]]) -> str:
    """The variant with the largest speed-up over the current constants at the same size, forward + backward."""
    gains = []
    for case, of_case in times.items():
        size, _, name = case.rpartition(", ")
        current = times.get(f"{size}, as it is")
        if current and name != "as it is":
            gains.append((current["forward+backward"] / of_case["forward+backward"], case))
    return f"best {max(gains)[1]} ({max(gains)[0]:.2f}x)" if gains else "nothing to compare yet"
