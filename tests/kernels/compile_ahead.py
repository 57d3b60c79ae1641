"""Compiles every kernel variant for one GPU architecture and prints what the compiler did, one JSON record a variant.

`python compile_ahead.py 90`, in a process without triton's interpreter. No GPU is needed.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile

from pqm_kernels import LOSSES, backward, forward
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, compile

HIDDEN = {"bf16": 2, "fp16": 2, "fp32": 4}  # bytes
INDICES = {"order_ptr": "*i32", "first_step_ptr": "*i32", "cu_steps_ptr": "*i32", "parts_done_ptr": "*i32"}
FLOATS = ("zeta", "norm_eps", "scale")
HEAD = ("weight_ptr", "norm_weight_ptr", "bias_ptr", "dweight_ptr", "dnorm_weight_ptr", "dbias_ptr")


def variants():
    """(kernel, dtype of hidden, dtype of the head, whether D and the row stride are multiples of 16, constants)."""
    for (dtype, size), norm in itertools.product(HIDDEN.items(), (True, False)):
        head = "fp32" if norm else dtype
        absent = {} if norm else {"norm_weight_ptr": None, "bias_ptr": None, "normalizer_ptr": None}
        for loss in LOSSES:
            scratch = {} if loss in forward.CHAINED else {"x_ptr": None}
            tile = {"BLOCK_S": forward.STEPS_PER_TILE, "BLOCK_D": forward.TILE_WIDTH // size}
            given = {"HAS_BIAS": norm, "HAS_NORM": norm, "HAS_NORMALIZER": norm}
            sweeps = {"LOSS": loss, "PART": forward.PART, "BLOCK_SWEEP": forward.STEPS_PER_SWEEP}
            yield forward.forward_kernel, dtype, head, True, tile | given | sweeps | scratch | absent
        for needs_hidden, needs_head in ((True, True), (True, False), (False, True)):
            tile = {"BLOCK_R": backward.ROWS_PER_TILE, "BLOCK_D": backward.TILE_WIDTH // size}
            needs = {"HAS_NORM": norm, "NEEDS_HIDDEN": needs_hidden, "NEEDS_HEAD": needs_head}
            yield backward.rows_kernel, dtype, head, True, tile | needs | absent
        tile = {"BLOCK_G": backward.GROUPS_PER_TILE, "BLOCK_D": backward.TILE_WIDTH // size}
        yield backward.head_kernel, dtype, head, True, tile | {"HAS_NORM": norm} | absent
    # An odd width: nothing can be read 16 bytes at a time.
    norm = {"HAS_NORM": True, "NEEDS_HIDDEN": True, "NEEDS_HEAD": True, "BLOCK_R": backward.ROWS_PER_TILE, "BLOCK_D": 256}
    yield backward.rows_kernel, "bf16", "fp32", False, norm


def compiled(kernel, dtype, head, aligned, constants, architecture):
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    if "stride_column" in kernel.arg_names:
        constants["stride_column"] = 1
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("hidden_ptr", "dhidden_ptr"):
            signature[name] = "*" + dtype
        elif name in HEAD:
            signature[name] = "*" + head
        elif name.endswith("_ptr"):
            signature[name] = INDICES.get(name, "*i64" if name == "step_index_ptr" else "*fp32")
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    divisible = ("D", "stride_row") if aligned else ()
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in divisible
    }
    source = ASTSource(kernel, signature, constants, attributes)
    options = forward.OPTIONS if kernel is forward.forward_kernel else forward.FUSE
    ptx = compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = re.search(r"\.target (\w+)", ptx).group(1)
        command = [get_ptxas(architecture).path, "-v", "--gpu-name", target, file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "kernel": kernel.__name__,
        "dtype": dtype,
        "aligned": aligned,
        "constants": constants,
        "spilled": [int(n) for n in re.findall(r"(\d+) bytes spill", report)],
        "registers": [int(n) for n in re.findall(r"Used (\d+) registers", report)],
        "fp64": ".f64" in ptx,
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
        "wide_stores": len(re.findall(r"st\.global\S*\.v4\.b32", ptx)),
        "publishes": "atom.global.gpu.acq_rel" in ptx,
    }


if __name__ == "__main__":
    for variant in variants():
        print(json.dumps(compiled(*variant, int(sys.argv[1]))), flush=True)
