"""The kernels compiled ahead of time for a Hopper GPU that need not be there: what only the compiler can tell."""

import json
import os
import subprocess
import sys

import pytest

# Prints one record per variant. A process of its own: this one may have triton in its interpreter.
COMPILE = r"""
import json, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from pqm_kernels import ranking

WIDTH = 1536
NAMES = {"step_index_ptr": "*i64", "order_ptr": "*i64", "first_step_ptr": "*i64", "cu_steps_ptr": "*i32",
         "stride_row": "i32", "stride_column": "constexpr", "num_rows": "i32", "zeta": "fp32", "norm_eps": "fp32"}

def compile(kernel, dtype, norm, **constants):
    constants |= {"stride_column": 1, "D": WIDTH, "HAS_BIAS": True, "HAS_NORM": norm, "BLOCK_D": 256}
    constants |= {} if norm else {"norm_weight_ptr": None, "rstd_ptr": None}
    signature = {}
    for name in kernel.arg_names:
        half = "*" + dtype if name in ("hidden_ptr", "dhidden_ptr") else "*fp32"
        signature[name] = "constexpr" if name in constants else NAMES.get(name, half)
    aligned = [["tt.divisibility", 16]]
    attributes = {(i,): aligned for i, (name, kind) in enumerate(signature.items())
                  if kind.startswith("*") or name == "stride_row"}
    source = ASTSource(kernel, signature, constants, attributes)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=ranking.FUSE).asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        arch = re.search(r"\.target (\w+)", ptx).group(1)
        command = [get_ptxas(90).path, "-v", "--gpu-name", arch, file.name, "-o", "/dev/null"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    print(json.dumps({
        "kernel": kernel.__name__, "dtype": dtype, "norm": norm,
        "spilled": [int(n) for n in re.findall(r"(\d+) bytes spill", log)],
        "fp64": ".f64" in ptx,
        "loads": re.findall(r"ld\.global\S*", ptx), "stores": re.findall(r"st\.global\S*", ptx),
    }), flush=True)

for dtype in ("bf16", "fp16", "fp32"):
    for norm in (True, False):
        compile(ranking._forward_kernel, dtype, norm, BLOCK_S=ranking.ROWS_PER_TILE,
                BLOCK_SWEEP=ranking.STEPS_PER_SWEEP)
        compile(ranking._backward_kernel, dtype, norm, NEEDS_HIDDEN=True, BLOCK_R=ranking.ROWS_PER_TILE)
"""


@pytest.mark.aot
def test_compiles_for_hopper(tmp_path):
    """`rank` forward and backward, each dtype of hidden, with a norm and without, D = 1536, contiguous."""
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = tmp_path / "compile.py"
    script.write_text(COMPILE)
    env["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    variants = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(variants) == 12
    for variant in variants:
        name = (variant["kernel"], variant["dtype"], variant["norm"])
        assert variant["spilled"], name  # the compiler's report was understood
        assert not any(variant["spilled"]), name
        assert not variant["fp64"], name
        # A tile of 16 rows x 256 columns of hidden among 128 threads, 16 bytes at a time; all else is narrower.
        wide = 16 * 256 * (4 if variant["dtype"] == "fp32" else 2) // (128 * 16)
        assert sum(".v4.b32" in load for load in variant["loads"]) == wide, name
        if variant["kernel"] == "_backward_kernel":
            assert sum(".v4.b32" in store for store in variant["stores"]) == wide, name
