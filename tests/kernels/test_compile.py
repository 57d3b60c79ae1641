"""Every kernel variant compiled ahead of time for GPUs that need not be there: what only the compiler can tell."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ARCHITECTURES = (80, 90, 100)  # Ampere, Hopper, Blackwell
THREADS = 128


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
    variants = compiled[architecture]
    # 8 losses, 3 backward variants and the reduction, for 3 dtypes of hidden with a norm and without; and an odd width.
    assert len(variants) == (8 + 3 + 1) * 3 * 2 + 1
    for variant in variants:
        assert len(variant["spilled"]) >= 2, variant  # the compiler's report was understood
        assert not any(variant["spilled"]), variant
        assert not variant["fp64"], variant


@pytest.mark.aot
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_is_moved_16_bytes_at_a_time(compiled, architecture):
    for variant in compiled[architecture]:
        constants, size = variant["constants"], 4 if variant["dtype"] == "fp32" else 2
        rows = constants.get("BLOCK_S", constants.get("BLOCK_R"))
        if rows is None or not variant["aligned"]:
            continue
        # That many a thread make up a tile; the loads of the head are fewer, whatever their width.
        tile = rows * constants["BLOCK_D"] * size // (THREADS * 16)
        if constants["HAS_NORM"] or constants.get("NEEDS_HEAD", True):
            assert variant["wide_loads"] >= tile, variant
        if constants.get("NEEDS_HIDDEN"):
            assert variant["wide_stores"] == tile, variant


@pytest.mark.aot
def test_scores_of_other_programs_are_received(compiled):
    """The loss of a long trajectory is computed behind an acquire-release at the scope of the GPU."""
    for variants in compiled.values():
        assert all(variant["publishes"] for variant in variants if variant["kernel"] == "forward_kernel")
