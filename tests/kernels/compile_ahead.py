"""Runs the op for GPUs that are not there: the host code up to its launches, each a compilation only.

`python compile_ahead.py`, in a process without triton's interpreter, prints a JSON record for each kernel that is
compiled: what the compiler did, and the first call that needed it. Each loss is compiled for one architecture, or, with
`python compile_ahead.py everything`, for all of them.
"""

import contextlib
import io
import itertools
import json
import multiprocessing
import re
import sys
from collections.abc import Iterator

import torch
import triton
from pqm_kernels import LOSSES
from pqm_kernels.adamw import kernel as adamw_kernel
from pqm_kernels.fused_step_loss.backward import backward
from pqm_kernels.fused_step_loss.forward import forward
from pqm_kernels.gather import kernel as gather_kernel
from pqm_kernels.launch import Launcher
from pqm_kernels.losses import LossOptions, split_units
from pqm_kernels.row_index import steps_by_row
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

ARCHITECTURES = (80, 90, 100)  # Ampere, Hopper, Blackwell
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LOSS_CALLS: dict[str, dict] = {
    **{name: {"loss": name, "weights": name in ("first-error", "group-rank")} for name in LOSSES},
    "bce+sibling": {"loss": "bce", "compare": "sibling", "weights": True},
    "rank+listwise-softmin": {"loss": "rank", "compare": "listwise-softmin", "weights": True, "outcomes": True},
}
# A loss is computed from float32 scores by the same code whatever hidden is, so each is compiled for one kind of it. No
# more kinds than calls: every kind is compiled too.
KINDS = list(itertools.product(DTYPES, (True, False), ARCHITECTURES))  # of hidden, with a norm or without, on a GPU
assert len(KINDS) <= len(LOSS_CALLS)
SUBSETS = ((True, True), (True, False), (False, True))  # gradients that are needed: of hidden, of the head


class AbsentGPU:
    """What triton asks its driver before it launches."""

    def __init__(self, architecture: int):
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def call(
    *, rows=4096, steps=1000, trajectories=128, width=1536, dtype=torch.bfloat16, head=torch.float32, loss="rank",
    norm=True, bias=True, normalizer=True, needs=((True, True),), hidden=None, index=torch.int64, cu=torch.int32,
    label=torch.float32, offset=0, compare=None, weights=False, outcomes=False,
) -> None:  # fmt: skip
    """Forward, and backward for each (needs_hidden, needs_head). `offset` of weight, in elements. A loss of questions
    gets four solutions to a question."""
    hidden = torch.zeros(rows, width, dtype=dtype) if hidden is None else hidden
    rows, width = hidden.shape
    step_index, labels = torch.zeros(steps, dtype=index), torch.ones(steps, dtype=label)
    cu_steps = torch.linspace(0, steps, trajectories + 1).to(cu)
    weight = torch.zeros(width + offset, dtype=head)[offset:]
    norm_weight = torch.ones(width, dtype=head) if norm else None
    head_weights = (weight, torch.zeros(1, dtype=head) if bias else None, norm_weight)
    divisor = torch.tensor(3.0) if normalizer else None
    of_trajectory, of_question = split_units(loss, compare)
    questions = [None] * 7
    if of_question is not None:
        questions[0] = torch.linspace(0, trajectories, trajectories // 4 + 1).to(cu)
        if LOSSES[of_question].uses_siblings:
            questions[1:4] = torch.zeros(3, steps, dtype=torch.int32)
        if outcomes:
            questions[4] = torch.ones(trajectories)
    if weights:
        if all(LOSSES[name].weighs_steps for name in (of_trajectory, of_question) if name is not None):
            questions[5] = torch.ones(steps)
        questions[6] = torch.ones(trajectories)
    numbers = [*LossOptions(), 0.5, 1e-6]
    _, _, work = forward(
        hidden, *head_weights, step_index, labels, cu_steps, divisor, questions, loss, compare, numbers, 1.0
    )
    order, first = steps_by_row(step_index, rows)
    for needs_hidden, needs_head in needs:
        backward(torch.tensor(1.0), work, hidden, *head_weights, order, first, needs_hidden, needs_head)


def calls(architecture: int, everything: bool) -> Iterator[tuple[str, dict]]:
    """(name, arguments of `call`). Names with "odd" promise no 16-byte accesses."""
    for number, (name, variant) in enumerate(LOSS_CALLS.items()):
        for turn in range(len(ARCHITECTURES) if everything else 1):
            dtype, norm, compiled_for = KINDS[(number + turn) % len(KINDS)]
            row, column = DTYPES.index(dtype), ARCHITECTURES.index(compiled_for)
            needs = SUBSETS
            if not everything:  # one subset for each dtype on each GPU, in turn with a norm and without
                needs = SUBSETS[(row + column) % 3 :][: norm == ((row + column) % 2 == 0)]
            common = {
                "dtype": dtype, "norm": norm, "bias": norm, "normalizer": norm,
                "head": torch.float32 if norm else dtype, "needs": needs,
                "trajectories": 128 if norm else 300,  # few programs, or many
            }  # fmt: skip
            if compiled_for == architecture:
                yield f"{name}, {dtype}, {'with' if norm else 'without'} norm", common | variant
    if not everything and architecture != ARCHITECTURES[0]:
        return
    yield "no long trajectory", {"steps": 40, "trajectories": 4}  # must need no other kernel, nor the next two
    yield "one trajectory", {"trajectories": 1}
    yield "nothing", {"steps": 0, "trajectories": 3, "rows": 0}
    yield "other counts", {"rows": 4097, "steps": 1100, "trajectories": 127}  # must need no other kernel
    yield "odd weight", {"offset": 1}
    yield "even weight", {}  # after the odd one
    yield "expanded", {"hidden": torch.zeros(1, 1536, dtype=torch.bfloat16).expand(64, 1536)}
    cheap = {"loss": "bce"}
    yield "narrow", cheap | {"width": 64}
    yield "other types", cheap | {"index": torch.int32, "cu": torch.int64, "label": torch.bool}
    yield "odd width", cheap | {"width": 1537}
    yield "odd, one column", cheap | {"width": 1}
    yield "odd, strided", cheap | {"hidden": torch.zeros(64, 3072, dtype=torch.bfloat16)[:, ::2]}
    yield "odd, transposed", cheap | {"hidden": torch.zeros(1536, 64, dtype=torch.bfloat16).t()}


def call_adamw(*, size=2**20, weight=torch.bfloat16, gradient=torch.bfloat16, number=0.1, skip=None) -> None:
    """One step, of tensors that have only their first element in memory."""
    dtypes = (weight, torch.int16, gradient, torch.float32, torch.float32)
    tensors = [torch.zeros(1, dtype=dtype).expand(size) for dtype in dtypes]
    if weight == torch.float32:
        tensors[1] = None
    adamw_kernel.update(*tensors, *[number] * 6, skip=skip)


def adamw_calls() -> Iterator[tuple[str, dict]]:
    """(name, arguments of `call_adamw`)."""
    for weight, gradient in itertools.product((torch.bfloat16, torch.float32), repeat=2):
        yield f"adamw, {weight}, {gradient}", {"weight": weight, "gradient": gradient}
    yield "adamw, other numbers", {"size": 3584, "number": 1.0}  # must need no other kernel
    yield "adamw, torch.bfloat16, torch.bfloat16, past int32", {"size": 2**31 + 16}
    yield "adamw, torch.bfloat16, torch.float32, with a flag", {"gradient": torch.float32, "skip": torch.zeros(())}
    yield "odd adamw", {"size": 1537}
    yield "odd adamw, one weight", {"size": 1}


def call_gather(*, width=1024, dtype=torch.bfloat16, rows=4096) -> None:
    """The gradients of each row's copies summed."""
    order, first = torch.zeros(2 * rows, dtype=torch.int32), torch.arange(0, 2 * rows + 2, 2, dtype=torch.int32)
    gather_kernel.sum_rows(torch.zeros(2 * rows, width, dtype=dtype), order, first)


def gather_calls() -> Iterator[tuple[str, dict]]:
    """(name, arguments of `call_gather`)."""
    for dtype in DTYPES:
        yield f"gather, {dtype}", {"dtype": dtype}
    yield "gather, other counts", {"rows": 4097}  # must need no other kernel
    yield "odd gather", {"width": 100}


def record(architecture: int, name: str, kernel: str, options: dict, compiled, report: str) -> dict:
    ptx = compiled.asm["ptx"]
    if not re.search(rf"\.target sm_{architecture}\w?\b", ptx):
        raise AssertionError(f"{name}: {kernel} was not compiled for sm_{architecture}")
    return {
        "architecture": architecture,
        "call": name,
        "kernel": kernel,
        "tile": options.get("BLOCK") or options.get("BLOCK_S", options.get("BLOCK_R", 0)) * options["BLOCK_D"],
        "threads": 32 * options["num_warps"],
        "spilled": [int(n) for n in re.findall(r"(\d+) bytes spill", report)],
        "registers": [int(n) for n in re.findall(r"Used (\d+) registers", report)],
        "shared": compiled.metadata.shared,
        "fp64": ".f64" in ptx,
        "wide_loads": len(re.findall(r"(?:ld\.global\S*\.v4\.b32|cp\.async\.c[ga]\.shared\.global.* 0x10)", ptx)),
        "wide_stores": len(re.findall(r"st\.global\S*\.v4\.b32", ptx)),
        "accesses": len(re.findall(r"(?:ld|st)\.global", ptx)),
        "approximate": sorted(set(re.findall(r"\w+\.(?:approx|full|\w+\.ftz|ftz)\S*|fma\.\S+", ptx))),
        "barriers": len(re.findall(r"bar\.sync", ptx)),
        "publishes": len(re.findall(r"atom\.global\.gpu\.acq_rel", ptx)),
    }


def records_of(architecture: int, everything: bool) -> list[dict]:
    driver.set_active(AbsentGPU(architecture))
    seen: set[tuple[str, str]] = set()
    by_key: dict[tuple, str] = {}
    current, records = [""], []

    def compile_only(self, on, key, grid, arguments, **options):
        options |= self.options
        with contextlib.redirect_stdout(io.StringIO()) as report:  # of ptxas
            compiled = self.kernel.warmup(*arguments, grid=grid, **options)
        name, kernel = current[0], self.kernel.__name__
        if by_key.setdefault((kernel, key), compiled.hash) != compiled.hash:
            raise AssertionError(f"{name}: triton compiles other code than it did for this key of {kernel}: {key}")
        if (kernel, compiled.hash) not in seen:
            seen.add((kernel, compiled.hash))
            options |= dict(zip(self.kernel.arg_names, arguments, strict=True))
            records.append(record(architecture, name, kernel, options, compiled, report.getvalue()))

    Launcher.launch = compile_only
    triton.knobs.nvidia.dump_ptxas_log = True
    for current[0], options in calls(architecture, everything):
        call(**options)
    if everything or architecture == ARCHITECTURES[0]:
        for current[0], options in adamw_calls():
            call_adamw(**options)
        for current[0], options in gather_calls():
            call_gather(**options)
    return records


def main(everything: bool) -> None:
    given = [(architecture, everything) for architecture in ARCHITECTURES]
    # Forks, as what is imported is imported once. One for each GPU, as triton keeps what it compiled for the device 0.
    with multiprocessing.get_context("fork").Pool(maxtasksperchild=1) as pool:
        for records in pool.starmap(records_of, given, chunksize=1):
            for found in records:
                print(json.dumps(found))


if __name__ == "__main__":
    assert not triton.knobs.runtime.interpret
    main(sys.argv[1:] == ["everything"])
