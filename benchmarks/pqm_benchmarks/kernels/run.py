"""`python -m pqm_benchmarks kernels`: the fused op against the published computation, eager PyTorch and torch.compile.

Needs torch, triton, numpy and, for the pictures, matplotlib; `run` starts it from Python, without the command line's
packages.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pqm_benchmarks.kernels.report import table
from pqm_fast.common.files import write_json
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    import torch

    from pqm_benchmarks.kernels.inputs import Inputs

SizeName = Literal["tiny", "training", "long", "bandwidth"]
ImplementationName = Literal["published", "eager", "compiled", "fused", "fused-sorting"]
Norm = Literal["both", "with", "without"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
PASSES = ("forward", "forward+backward")
ROUNDS = 2  # every implementation is measured once in each round; the difference of the rounds is the noise


@dataclass(frozen=True)
class KernelBench:
    """Time the fused op, from hidden states to loss and gradients, and draw its distance from the byte floor."""

    out: str = "runs/bench-kernels"
    """Folder for kernels.json and the pictures."""
    results: str | None = None
    """A kernels.json of an earlier run: print its table and draw its pictures into --out, and measure nothing."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    sizes: tuple[SizeName, ...] = ()
    """Sizes of a batch. Default: training, long and bandwidth on a GPU, tiny on a CPU."""
    widths: tuple[int, ...] = ()
    """Hidden widths D. Default: 896 1536 3584 4096 on a GPU, 64 on a CPU."""
    dtype: DType = "auto"
    """Type of the hidden states. auto: bfloat16 on a GPU, float32 on a CPU."""
    norm: Norm = "both"
    """Measure with the final RMSNorm in the op, without it, or both."""
    losses: tuple[str, ...] = ("rank",)
    """Losses to measure; the published computation exists for rank alone."""
    implementations: tuple[ImplementationName, ...] = get_args(ImplementationName)
    """What to measure. fused-sorting is fused without the index that the packer makes in advance for the backward."""
    repeats: int = 50
    """Measurements that a median is taken of; fewer, but not below 5, if they take long."""
    seed: int = 0
    """Seed of the made-up batches."""


def run(config: KernelBench) -> dict[str, Any]:
    """Measures (or reads --results), writes OUT/kernels.json, prints the table, draws the pictures. Returns the
    results.

    Raises:
        PQMError: an option that makes no sense, or nothing could be measured.
    """
    from pqm_benchmarks.kernels.pictures import draw

    folder = Path(config.out)
    if config.results is not None:
        results = _read(Path(config.results))
    else:
        if (folder / "kernels.json").exists():
            raise PQMError(f"{folder / 'kernels.json'}: exists already; delete it or choose another --out")
        # stored after each case, so that a run that is cut off leaves its results so far
        results = measure(config, lambda so_far: write_json(folder / "kernels.json", so_far))
        print(f"\nmeasurements: {folder / 'kernels.json'}")
    print("\n" + table(results) + "\n")
    for picture in draw(results, folder):
        print(f"picture: {picture}")
    return results


def measure(config: KernelBench, store: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Calls `store` with the results so far after each case, and returns all of them, ready for JSON:
    {"environment", "device", "dtype", "l2_bytes", "copy_gb_s", "copy_gb_s_rounds", "config", "left_out", "records"}.

    A record is one implementation of one pass over one batch. It names its case and holds `gpu_us` (null on a CPU) and
    `wall_us` with the medians of each round, `graph` (whether gpu_us was measured in a CUDA graph) and `extra_bytes`.
    Computed from these are `floor_us` (the fewest bytes that must move, at copy bandwidth), `gb_s` and
    `percent_of_copy` (those bytes over the time taken, which on a CPU is the wall time).
    """
    import torch

    from pqm_benchmarks.kernels.implementations import why_not
    from pqm_benchmarks.kernels.inputs import SIZES, count_inputs, make_inputs
    from pqm_benchmarks.shared.attempts import attempt
    from pqm_benchmarks.shared.devices import copy_rate, environment_of, pick

    device = pick(config.device)
    sizes, widths, dtype, norms = _chosen(config, device)
    left_out: dict[str, str] = {}
    copies = [copy_rate(device)]
    records: list[dict[str, Any]] = []
    environment = environment_of(device)

    def results() -> dict[str, Any]:
        copy_gb_s = sum(copies) / len(copies)
        return {
            "environment": environment,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "l2_bytes": torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else None,
            "copy_gb_s": copy_gb_s,
            "copy_gb_s_rounds": copies,
            "config": asdict(config),
            "left_out": left_out,
            "records": [record | _rates(record, copy_gb_s) for record in records],
        }

    def make(size: str, width: int) -> list["Inputs"]:
        count = count_inputs(SIZES[size], width, dtype, device)
        return [make_inputs(SIZES[size], width, dtype, device, config.seed, i) for i in range(count)]

    for size, width in itertools.product(sizes, widths):
        inputs, why = attempt(partial(make, size, width))
        if why is not None:
            left_out[f"{size}, D {width}"] = why
            continue
        for loss in config.losses:
            reasons = {name: why_not(name, loss, device) for name in config.implementations}
            left_out |= {f"{name}, {loss}": why for name, why in reasons.items() if why}
            names = [name for name, why in reasons.items() if not why]
            for norm in norms:
                case = {"size": size, **asdict(SIZES[size]), "width": width, "loss": loss, "norm": norm}
                case_records, failed = _measure_case(case, names, inputs, device, config.repeats)
                records += case_records
                left_out |= {f"{name}, {_case_name(case)}": why for name, why in failed.items()}
                if records:
                    store(results())
        del inputs
        copies.append(copy_rate(device))
    if not records:
        raise PQMError(f"nothing can be measured here: {'; '.join(sorted(set(left_out.values())))}")
    store(results())
    return results()


def _measure_case(
    case: dict[str, Any], names: Sequence[str], inputs: Sequence["Inputs"], device: "torch.device", repeats: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(records of one size, width, loss and norm, reasons of the implementations that have none). All implementations
    are checked before any is timed; those that are wrong or fail are left out, and the others are measured."""
    import torch

    from pqm_benchmarks.kernels.implementations import IMPLEMENTATIONS, Call, check
    from pqm_benchmarks.kernels.inputs import floor_bytes
    from pqm_benchmarks.kernels.memory import extra_bytes
    from pqm_benchmarks.shared.attempts import attempt
    from pqm_benchmarks.shared.timing import gpu_seconds, wall_seconds

    if "compiled" in names:
        torch.compiler.reset()  # otherwise it would generalise over the cases so far, or give up on them
    calls: dict[str, list[Call]] = {}
    failed: dict[str, str] = {}

    def checked(name: str) -> list[Call]:
        of_name = [IMPLEMENTATIONS[name](batch, case["loss"], case["norm"]) for batch in inputs]
        check(name, of_name[0], inputs[0], case["loss"], case["norm"])
        return of_name

    for name in names:
        checked_calls, why = attempt(partial(checked, name))
        if why is None:
            calls[name] = checked_calls
        else:
            failed[name] = why
            print(f"{_case_name(case)}, {name}: left out, {why}", flush=True)
    records = []
    for passed in PASSES:
        runs = {name: [getattr(call, passed.replace("+", "_")) for call in of_name] for name, of_name in calls.items()}
        times: dict[str, list[Any]] = {name: [] for name in calls}

        def timed(in_turn: list[Any], again: bool) -> tuple[float, float | None, str | None, int | None]:
            """(wall seconds, GPU seconds, why there is no CUDA graph, extra bytes)."""
            wall = wall_seconds(in_turn, repeats, device)
            if device.type != "cuda":
                return wall, None, None, None
            return wall, *gpu_seconds(in_turn, repeats), None if again else extra_bytes(in_turn[0])

        for name in [*calls] * ROUNDS:
            if name not in failed:
                measured, why = attempt(partial(timed, runs[name], bool(times[name])))
                times[name].append(measured)
                if why is not None:
                    failed[name] = f"{passed}: {why}"
                    print(f"{_case_name(case)}, {name}: left out, {failed[name]}", flush=True)
        for name in calls:
            if name in failed:
                continue
            walls, gpus, reasons, extra = zip(*times[name], strict=True)
            record = case | {
                "pass": passed,
                "implementation": name,
                "wall_us_rounds": [1e6 * wall for wall in walls],
                "wall_us": 1e6 * sum(walls) / ROUNDS,
                "gpu_us_rounds": [1e6 * gpu for gpu in gpus] if device.type == "cuda" else None,
                "gpu_us": 1e6 * sum(gpus) / ROUNDS if device.type == "cuda" else None,
                "graph": device.type == "cuda" and not any(reasons),
                "why_no_graph": reasons[0],
                "extra_bytes": extra[0],
                "floor_bytes": floor_bytes(inputs[0], backward=passed != "forward"),
                "inputs_in_turn": len(inputs),
            }
            records.append(record)
            clocks = [f"{clock} {record[f'{clock}_us']:,.1f} us" for clock in ("gpu", "wall") if record[f"{clock}_us"]]
            print(f"{_case_name(case)}, {passed}, {name}: {', '.join(clocks)}", flush=True)
    return records, failed


def _case_name(case: dict[str, Any]) -> str:
    return f"{case['size']}, D {case['width']}, {case['loss']}, {'norm' if case['norm'] else 'no norm'}"


def _chosen(
    config: KernelBench, device: "torch.device"
) -> tuple[Sequence[str], Sequence[int], "torch.dtype", Sequence[bool]]:
    """(sizes, widths, dtype, norms): from the options, or by default those for the device."""
    import torch
    from pqm_kernels import LOSSES

    on_gpu = device.type == "cuda"
    for option, values, known in (
        ("sizes", config.sizes, get_args(SizeName)),
        ("losses", config.losses, LOSSES),
        ("implementations", config.implementations, get_args(ImplementationName)),
    ):
        if unknown := [name for name in values if name not in known]:
            raise PQMError(f"{option}: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    if not config.losses or not config.implementations:
        raise PQMError("losses and implementations: give at least one of each")
    sizes = config.sizes or (("training", "long", "bandwidth") if on_gpu else ("tiny",))
    widths = config.widths or ((896, 1536, 3584, 4096) if on_gpu else (64,))
    if config.repeats < 1 or min(widths) < 1:
        raise PQMError(f"repeats and widths must be positive, found {config.repeats} and {min(widths)}")
    dtype = config.dtype if config.dtype != "auto" else "bfloat16" if on_gpu else "float32"
    norms = [norm for norm in (False, True) if config.norm in ("both", "with" if norm else "without")]
    return sizes, widths, getattr(torch, dtype), norms


def _rates(record: dict[str, Any], copy_gb_s: float) -> dict[str, float]:
    taken_us = record["wall_us"] if record["gpu_us"] is None else record["gpu_us"]
    gb_s = record["floor_bytes"] / taken_us / 1e3
    return {
        "floor_us": record["floor_bytes"] / copy_gb_s / 1e3,
        "gb_s": gb_s,
        "percent_of_copy": 100 * gb_s / copy_gb_s,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not results["records"] or "copy_gb_s" not in results:
            raise KeyError("copy_gb_s")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PQMError(f"{path}: is not a kernels.json of `python -m pqm_benchmarks kernels` ({error!r})") from error
    return results
