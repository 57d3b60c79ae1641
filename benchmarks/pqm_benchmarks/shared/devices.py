"""The device that a run is on: its peak, the rate that it has in this run, the time that it takes and what it holds."""

import time
from collections.abc import Callable

import torch

from pqm_benchmarks.shared.measure import gpu_seconds, wall_seconds
from pqm_fast.errors import PQMError

# Dense bfloat16 peak of a device, TFLOP/s, by the start of what its name has after "NVIDIA "; the first one counts.
PEAKS = {
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
}
MATRIX = {"cuda": 8192, "cpu": 256}


def pick(name: str) -> torch.device:
    """`auto`: cuda if there is one, otherwise cpu. Raises PQMError for another device, or one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cuda", "cpu") or (name == "cuda" and not torch.cuda.is_available()):
        raise PQMError(f"device: expected cpu, or cuda where there is one, found {name!r}")
    return torch.device(name)


def peak_of(device_name: str) -> tuple[str, float] | None:
    """(what it is the peak of, TFLOP/s) or None for a device that is not in the table."""
    name = device_name.removeprefix("NVIDIA ")
    return next(((model, peak) for model, peak in PEAKS.items() if name.startswith(model)), None)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of one product of large square matrices with random numbers."""
    size = MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> tuple[torch.Tensor, ...]:
        return (torch.mm(a, b),)

    seconds = gpu_seconds([product], 30)[0] if device.type == "cuda" else wall_seconds([product], 10, device)
    return 2 * size**3 / seconds / 1e12


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of work that is queued, and waited for once."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def laps(work: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of the same work again and again: at least once, and more for so many seconds."""
    found = [timed(work, device)]
    while sum(found) + found[-1] < seconds:
        found.append(timed(work, device))
    return found


def watch_memory(device: torch.device) -> None:
    """From here on `peak_bytes` counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that tensors held at a time; None on a CPU."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None
