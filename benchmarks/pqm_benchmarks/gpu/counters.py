"""Hardware counters of the op's kernels, from Nsight Compute if it is installed."""

import csv
import io
import os
import shutil
import subprocess
import sys

import torch

from pqm_benchmarks.gpu.job import Job, Skipped
from pqm_benchmarks.kernels.implementations import fused
from pqm_benchmarks.kernels.inputs import SIZES, make_inputs
from pqm_fast.errors import PQMError

KERNELS = "regex:forward_kernel|rows_kernel"
WIDTH = 4096
SHOWN = ("Duration", "Memory Throughput", "DRAM Throughput", "Compute (SM) Throughput", "Registers Per Thread",
         "Achieved Occupancy", "Theoretical Occupancy", "Elapsed Cycles")  # fmt: skip


def counters(job: Job) -> None:
    """Stores the counters of one forward and backward pass at the bandwidth size.

    Raises:
        PQMError: ncu fails, or reads no kernel.
    """
    ncu = shutil.which("ncu")
    if not job.on_gpu or ncu is None:
        raise Skipped("needs a GPU and Nsight Compute (ncu)")
    # the clocks belong to the owner of the card, so they are left unchanged
    command = [ncu, "--set", "basic", "--clock-control", "none", "--kernel-name", KERNELS, "--csv", "--page", "details"]
    done = subprocess.run(
        [*command, sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True, env=os.environ, check=False
    )
    print(done.stdout, flush=True)
    metrics = read(done.stdout)
    if done.returncode or not metrics:
        raise PQMError(f"ncu ended with exit code {done.returncode} and {len(metrics)} kernels: see the log")
    shares = (f"{kernel}: {values.get('DRAM Throughput', '?')} of DRAM bandwidth" for kernel, values in metrics.items())
    job.store(headline="; ".join(shares), counters=metrics)


def read(text: str) -> dict[str, dict[str, str]]:
    """{kernel: {metric: value with its unit}} from ncu's CSV, for the metrics in SHOWN."""
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    metrics: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[head:]))):
        if row.get("Metric Name") in SHOWN:
            value = f"{row['Metric Value']} {row['Metric Unit']}".strip()
            metrics.setdefault(row["Kernel Name"].partition("(")[0], {})[row["Metric Name"]] = value
    return metrics


def run_op() -> None:
    """The computation that ncu watches."""
    inputs = make_inputs(SIZES["bandwidth"], WIDTH, torch.bfloat16, torch.device("cuda"), 0, 0)
    fused(inputs, "rank", True).forward_backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    run_op()
