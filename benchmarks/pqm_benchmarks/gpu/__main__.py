"""The process of one stage, which `run.py` starts: `python -m pqm_benchmarks.gpu MODULE:FUNCTION ...`."""

import argparse
import os
import sys
from pathlib import Path

from pqm_benchmarks.gpu.job import Job


def main() -> int:
    os.setpgrp()  # a process group, so that everything the stage has started ends with it
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("--device", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--earlier", type=Path)
    options = parser.parse_args()
    return Job(options.device, options.out, options.report, options.earlier).do(options.work)


if __name__ == "__main__":
    sys.exit(main())
