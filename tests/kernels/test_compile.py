"""Every kernel variant compiled ahead of time for GPUs that need not be there: what only the compiler can tell."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cases import OF_QUESTIONS
from pqm_kernels import LOSSES

ARCHITECTURES = (80, 90, 100)  # Ampere, Hopper, Blackwell
# Two losses for 3 dtypes of hidden, with a norm and without; the others once, and two pairs and two weighted losses.
FORWARD_KERNELS = 2 * 3 * 2 + len(LOSSES) - 2 + 4


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{architecture: records}; each compiled in a process of its own, as this one may hold triton's interpreter."""
    pytest.importorskip("triton")
    cache = tmp_path_factory.mktemp("triton")

    def compile_for(architecture):
        env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        env["TRITON_CACHE_DIR"] = str(cache / str(architecture))
        command = [sys.executable, str(Path(__file__).with_name("compile_ahead.py")), str(architecture)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(ARCHITECTURES, pool.map(compile_for, ARCHITECTURES), strict=True))


@pytest.mark.aot
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_variant_compiles_well(compiled, architecture):
    kernels = [record["kernel"] for record in compiled[architecture]]
    # the losses; 3 subsets of gradients and the reduction, for 3 dtypes of hidden, with a norm and without; odd calls
    assert kernels.count("forward_kernel") > FORWARD_KERNELS
    assert kernels.count("rows_kernel") > 3 * 3 * 2
    assert kernels.count("head_kernel") >= 3 * 2
    for record in compiled[architecture]:
        assert len(record["spilled"]) >= 2, record  # the compiler's report was understood
        assert not any(record["spilled"]), record
        assert not record["fp64"], record


@pytest.mark.aot
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_is_moved_16_bytes_at_a_time(compiled, architecture):
    checked = 0
    for record in compiled[architecture]:
        _, dtype, norm = (record["call"].split(", ") + [""] * 2)[:3]
        if norm not in ("with norm", "without norm") or record["kernel"] == "head_kernel":
            continue
        # That many accesses of a thread make up a tile; those of the head are fewer, whatever their width.
        tile = record["tile"] * (4 if dtype == "torch.float32" else 2) // (record["threads"] * 16)
        assert max(record["wide_loads"], record["wide_stores"]) >= tile, record
        checked += 1
    assert checked == FORWARD_KERNELS + 3 * 3 * 2


@pytest.mark.aot
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adamw_moves_16_bytes_at_a_time_and_rounds_as_plain_pytorch(compiled, architecture):
    records = {record["call"]: record for record in compiled[architecture] if record["kernel"] == "adamw_kernel"}
    assert not any(record["approximate"] for record in records.values())  # nor fused
    even = {call: record for call, record in records.items() if not call.startswith("odd")}
    assert len(even) == 6, even  # no more for other numbers and sizes
    for call, record in even.items():
        stored = 8 + 4  # bytes of the moments, and of the weight with its low half
        loaded = stored + (4 if call.split(", ")[2] == "torch.float32" else 2)
        per_thread = record["tile"] // record["threads"]
        assert record["wide_loads"] * 16 == loaded * per_thread, record
        assert record["wide_stores"] * 16 == stored * per_thread, record
        flag = call.endswith("with a flag")
        assert record["accesses"] == record["wide_loads"] + record["wide_stores"] + flag, record


@pytest.mark.aot
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_copies_are_summed_16_bytes_at_a_time(compiled, architecture):
    records = {record["call"]: record for record in compiled[architecture] if record["kernel"] == "sum_rows_kernel"}
    even = {call: record for call, record in records.items() if not call.startswith("odd")}
    assert len(even) == 3, even  # no more for other numbers
    for call, record in even.items():
        tile = record["tile"] * (4 if call.endswith("float32") else 2) // (record["threads"] * 16)
        assert record["wide_loads"] >= tile, record
        assert record["wide_stores"] >= tile // 4, record  # four copies to a row


@pytest.mark.aot
def test_another_batch_needs_no_other_kernel(compiled):
    """Numbers of rows, steps and trajectories change with every batch: none is compiled into a kernel."""
    batches = ("other counts", "no long trajectory", "one trajectory", "nothing", "even weight", "adamw, other numbers")
    for records in compiled.values():
        assert not [record for record in records if record["call"] in batches]


@pytest.mark.aot
def test_scores_of_other_programs_are_received(compiled):
    """The loss of a long trajectory, of a question, and the sum of all: each behind an acquire-release of the GPU."""
    for records in compiled.values():
        forward = [record for record in records if record["kernel"] == "forward_kernel"]
        for record in forward:
            of_questions = any(name in record["call"].split(",")[0] for name in OF_QUESTIONS)
            assert record["publishes"] == 2 + of_questions, record
