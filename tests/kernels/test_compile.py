"""Every kernel compiled ahead of time for GPUs that need not be there: what only the compiler can tell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import OF_QUESTIONS

pytest.importorskip("triton")

from compile_ahead import KINDS, LOSS_CALLS

pytestmark = pytest.mark.aot


@pytest.fixture(scope="module", params=["each loss once", pytest.param("everything", marks=pytest.mark.slow)])
def compiled(request, tmp_path_factory):
    """The records of `compile_ahead`; from another process, as this one may hold triton's interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, str(Path(__file__).with_name("compile_ahead.py")), request.param]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def of_kinds(compiled):
    """{kernel: {(loss, dtype, norm, architecture): records}} of the calls for each kind of hidden."""
    found = {"forward_kernel": {}, "rows_kernel": {}}
    for record in compiled:
        loss, dtype, norm = (record["call"].split(", ") + [""] * 2)[:3]
        if norm in ("with norm", "without norm") and record["kernel"] in found:
            of = loss, dtype, norm == "with norm", record["architecture"]
            found[record["kernel"]].setdefault(of, []).append(record)
    return found


def test_every_kernel_compiles_well(compiled):
    for record in compiled:
        assert len(record["spilled"]) >= 2, record  # the compiler's report was understood
        assert not any(record["spilled"]), record
        assert not record["fp64"], record


def test_each_loss_and_each_kind_of_hidden_is_compiled(of_kinds):
    forward, rows = of_kinds.values()
    assert {loss for loss, *_ in forward} == set(LOSS_CALLS)
    assert {tuple(kind) for _, *kind in forward} == {(str(dtype), norm, on) for dtype, norm, on in KINDS}
    assert {(dtype, on) for _, dtype, _, on in rows} == {(str(dtype), on) for dtype, _, on in KINDS}
    assert {norm for _, _, norm, _ in rows} == {True, False}


def test_hidden_is_moved_16_bytes_at_a_time(of_kinds):
    for kernel in of_kinds.values():
        for (_, dtype, _, _), records in kernel.items():
            for record in records:
                # That many accesses of a thread make up a tile; those of the head are fewer, whatever their width.
                tile = record["tile"] * (4 if dtype == "torch.float32" else 2) // (record["threads"] * 16)
                assert max(record["wide_loads"], record["wide_stores"]) >= tile, record


def even_calls(compiled, kernel):
    """(call, record) where all accesses are aligned."""
    return [(r["call"], r) for r in compiled if r["kernel"] == kernel and not r["call"].startswith("odd")]


def test_adamw_moves_16_bytes_at_a_time_and_rounds_as_plain_pytorch(compiled):
    assert not any(r["approximate"] for r in compiled if r["kernel"] == "adamw_kernel")  # nor fused
    even = even_calls(compiled, "adamw_kernel")
    assert len({call for call, _ in even}) == 6, even  # no more for other numbers and sizes
    for call, record in even:
        stored = 8 + 4  # bytes of the moments, and of the weight with its low half
        loaded = stored + (4 if call.split(", ")[2] == "torch.float32" else 2)
        per_thread = record["tile"] // record["threads"]
        assert record["wide_loads"] * 16 == loaded * per_thread, record
        assert record["wide_stores"] * 16 == stored * per_thread, record
        flag = call.endswith("with a flag")
        assert record["accesses"] == record["wide_loads"] + record["wide_stores"] + flag, record


def test_copies_are_summed_16_bytes_at_a_time(compiled):
    even = even_calls(compiled, "sum_rows_kernel")
    assert len({call for call, _ in even}) == 3, even  # no more for other numbers
    for call, record in even:
        tile = record["tile"] * (4 if call.endswith("float32") else 2) // (record["threads"] * 16)
        assert record["wide_loads"] >= tile, record
        assert record["wide_stores"] >= tile // 4, record  # four copies to a row


def test_another_batch_needs_no_other_kernel(compiled):
    """Numbers of rows, steps and trajectories change with every batch: none is compiled into a kernel."""
    batches = ("other counts", "no long trajectory", "one trajectory", "nothing", "even weight", "adamw, other numbers")
    assert not [record for record in compiled if record["call"] in batches]


def test_scores_of_other_programs_are_received(compiled):
    """The loss of a long trajectory, of a question, and the sum of all: each behind an acquire-release of the GPU."""
    for record in compiled:
        if record["kernel"] == "forward_kernel":
            of_questions = any(name in record["call"].split(",")[0] for name in OF_QUESTIONS)
            assert record["publishes"] == 2 + of_questions, record
