"""The device of a run: its name, its peak, the rates that it reaches in this run, and the memory that it holds."""

from typing import Any

import torch
from torch import Tensor

from pqm_benchmarks.shared.timing import gpu_seconds, seconds_between_events, wall_seconds
from pqm_fast.common.environment import describe
from pqm_fast.errors import PQMError

# Dense bfloat16 peak in TFLOP/s, by the beginning of the device's name after "NVIDIA "; the first match counts.
PEAKS = {
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
}
MATRIX_SIZE = {"cuda": 8192, "cpu": 256}
COPY_BYTES = {"cuda": 2**31, "cpu": 2**25}


def pick(name: str) -> torch.device:
    """`auto` is cuda if there is a GPU, otherwise cpu. Raises PQMError for a device that is unknown or missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cuda", "cpu") or (name == "cuda" and not torch.cuda.is_available()):
        raise PQMError(f"device: expected cpu, or cuda where there is one, found {name!r}")
    return torch.device(name)


def environment_of(device: torch.device) -> dict[str, Any]:
    """The result of `describe`, with the name of the device that is measured."""
    environment = describe()
    if device.type == "cpu" and torch.cuda.is_available():
        environment["device"] = "CPU"  # `describe` names the GPU
    return environment


def peak_of(device_name: str) -> tuple[str, float] | None:
    """(model, its peak in TFLOP/s), or None for a device that is not in PEAKS."""
    name = device_name.removeprefix("NVIDIA ")
    return next(((model, peak) for model, peak in PEAKS.items() if name.startswith(model)), None)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of one product of large square matrices of random numbers."""
    size = MATRIX_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> tuple[Tensor, ...]:
        return (torch.mm(a, b),)

    seconds = gpu_seconds([product], 30)[0] if device.type == "cuda" else wall_seconds([product], 10, device)
    return 2 * size**3 / seconds / 1e12


def copy_rate(device: torch.device) -> float:
    """GB/s of copying on the device, bytes read plus bytes written: the most that a kernel that
    only moves bytes can reach."""
    size = COPY_BYTES[device.type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> tuple[Tensor, ...]:
        return (target.copy_(source),)

    if device.type == "cuda":
        copy()
        seconds = seconds_between_events([copy] * 30)
    else:
        seconds = wall_seconds([copy], 30, device)
    return 2 * size / seconds / 1e9


def watch_memory(device: torch.device) -> None:
    """`peak_bytes` counts from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int | None:
    """The most bytes that tensors held at any time since `watch_memory`; None on a CPU."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None
