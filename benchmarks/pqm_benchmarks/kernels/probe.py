"""`python -m pqm_benchmarks probe`: epochs a second of training a head on stored hidden states."""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pqm_benchmarks.shared.text import aligned, measured_on, short
from pqm_fast.common.files import write_json
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    import torch

LOOPS = {"launches": "step by step", "graph": "CUDA graph", "probe": "probe step"}


@dataclass(frozen=True)
class ProbeBench:
    """Time the training of a head on stored hidden states: the fused op with the norm, its backward, and AdamW."""

    out: str = "runs/bench-probe.json"
    """File for the measurements."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    gigabytes: tuple[float, ...] = ()
    """Sizes of the states. Default: 1 and 10 on a GPU, 0.016 on a CPU."""
    width: int = 1536
    """Columns of a state."""
    batches: tuple[int, ...] = ()
    """Steps in a batch, multiples of 32; 0: all of them. Default: 4096 65536 0 on a GPU, 512 0 on a CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the states. auto: bfloat16 on a GPU, float32 on a CPU."""
    seconds: float = 0.5
    """Time for the epochs that a median is taken of; at least one."""
    seed: int = 0
    """Seed of the made-up states."""


def run(config: ProbeBench) -> dict[str, Any]:
    """Measures, writes OUT and prints the table. Returns the results.

    Raises:
        PQMError: an option that makes no sense, a file that exists, or nothing could be measured.
    """
    out = Path(config.out)
    if out.exists():
        raise PQMError(f"{out}: exists already; delete it or choose another --out")
    results = measure(config, lambda so_far: write_json(out, so_far))
    print(f"\n{table(results)}\n\nmeasurements: {out}")
    return results


def measure(config: ProbeBench, store: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Calls `store` with the results so far after each case, and returns all of them, ready for JSON:
    {"environment", "device", "dtype", "copy_gb_s", "config", "left_out", "records"}.

    A record has `bytes` and `states`, `batch` (steps), `loop` (a key of LOOPS), the median `seconds` of an epoch on the
    wall, `epochs_per_s`, and `gb_s` and `percent_of_copy` of the fewest bytes: each state is read once forward and once
    backward.
    """
    import torch

    from pqm_benchmarks.kernels.head import CYCLE, make_states
    from pqm_benchmarks.shared.attempts import attempt
    from pqm_benchmarks.shared.devices import copy_rate, environment_of, pick

    device = pick(config.device)
    on_gpu = device.type == "cuda"
    sizes = config.gigabytes or ((1.0, 10.0) if on_gpu else (0.016,))
    batches = config.batches or ((4096, 65536, 0) if on_gpu else (512, 0))
    if min(*sizes, config.width) <= 0 or config.seconds < 0 or any(steps < 0 or steps % CYCLE for steps in batches):
        raise PQMError(f"gigabytes and width must be positive, seconds 0 or more, and batches multiples of {CYCLE}")
    dtype = getattr(torch, config.dtype if config.dtype != "auto" else "bfloat16" if on_gpu else "float32")
    results: dict[str, Any] = {
        "environment": environment_of(device),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "copy_gb_s": copy_rate(device),
        "config": asdict(config),
        "left_out": {},
        "records": [],
    }

    def add(record: dict[str, Any], why: str | None) -> None:
        if why is not None:
            results["left_out"][case_name(record)] = why
        else:
            record["epochs_per_s"] = 1 / record["seconds"]
            record["gb_s"] = 2 * record["bytes"] / record["seconds"] / 1e9
            record["percent_of_copy"] = 100 * record["gb_s"] / results["copy_gb_s"]
            results["records"].append(record)
            print(f"{case_name(record)}: {short(record['epochs_per_s'])} epochs/s", flush=True)
        store(results)

    for gigabytes in sizes:
        made, why = attempt(partial(make_states, int(gigabytes * 1e9), config.width, dtype, device, config.seed))
        if why is not None:
            results["left_out"][f"{gigabytes:g} GB"] = why
            continue
        states, labels = made
        case = {"bytes": states.nbytes, "states": len(states), "width": config.width}
        for steps, loop in itertools.product(batches, LOOPS if on_gpu else ("launches", "probe")):
            work = partial(_epoch_seconds, states, labels, steps or len(states), loop, config.seconds)
            seconds, why = attempt(work)
            add(case | {"batch": steps, "loop": loop, "seconds": seconds}, why)
        del made, states, labels, work
    if not results["records"]:
        raise PQMError(f"nothing can be measured here: {'; '.join(sorted(set(results['left_out'].values())))}")
    return results


def _epoch_seconds(states: "torch.Tensor", labels: "torch.Tensor", steps: int, loop: str, seconds: float) -> float:
    from pqm_benchmarks.kernels.head import Head, check, epoch_of, graph_of, make_batches, probe_epoch
    from pqm_benchmarks.shared.timing import laps

    device, width = states.device, states.shape[1]
    backend = "triton" if device.type == "cuda" else "eager"
    batches = make_batches(states, labels, steps)
    check(width, backend, make_batches(states[:4096], labels[:4096], 4096)[0])
    if loop == "probe":
        _, epoch = probe_epoch(batches)
    else:
        epoch = (graph_of if loop == "graph" else epoch_of)(Head(width, device, backend), batches)
    epoch()  # the first one compiles, and makes the optimizer's state
    return statistics.median(laps(epoch, device, seconds))


def case_name(record: dict[str, Any]) -> str:
    batch = f"batches of {record['batch']:,}" if record["batch"] else "one batch"
    return f"{record['bytes'] / 1e9:.3g} GB, {batch}, {LOOPS[record['loop']]}"


def table(results: dict[str, Any]) -> str:
    """Epochs a second of each case, and the rate at which it reads the states."""
    rows = [["states", "steps in a batch", "", "epochs/s", "GB/s", "of copy"]]
    rows += [
        [
            f"{r['states']:,} x {r['width']:,} ({r['bytes'] / 1e9:.3g} GB)", f"{r['batch']:,}" if r["batch"] else "all",
            LOOPS[r["loop"]], short(r["epochs_per_s"]), short(r["gb_s"]), f"{r['percent_of_copy']:.0f}%",
        ]
        for r in results["records"]
    ]  # fmt: skip
    lines = [measured_on(results["environment"])]
    lines.append(f"{results['dtype']}; copy bandwidth {results['copy_gb_s']:,.1f} GB/s, read plus written")
    if results["device"] != "cuda":
        lines.append("Measured on a CPU, with the eager backend: these are NOT figures of a GPU.")
    left_out = [f"left out: {name} ({why})" for name, why in results["left_out"].items()]
    return "\n".join([*lines, aligned(rows, left=(0, 2)), *left_out])
