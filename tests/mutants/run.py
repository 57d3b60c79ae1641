"""Breaks the code on purpose and says which test notices: `python tests/mutants/run.py [AREA or words of a name]`.

A mutant is one wrong edit that a person could make. The files beside this one list them, one file for each area:

    - name: what is wrong, in words
      file: pqm_fast/data/pack.py     # the file that is edited
      old: "the text as it is"        # it must occur exactly once
      new: "the text as it becomes"
      tests: tests/data               # what pytest runs, up to the first failure

Exits with 1 if a mutant survives. A mutant whose old text is gone has to be rewritten with the code.
"""

import importlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300  # seconds; a mutant may make a loop endless
COLUMNS = "{:<76} {:>4}  {}"
LIBRARIES = (
    "torch.distributed.fsdp",
    "transformers.generation",
    "transformers.models.auto.modeling_auto",
    "triton.language",
)
"""Imported once, because that takes longer than most tests."""


def mutants(words: str) -> list[dict[str, str]]:
    """The mutants of all areas whose file or name has the words. ValueError for one that is not as above."""
    chosen = []
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        for mutant in yaml.safe_load(path.read_text(encoding="utf-8")):
            if set(mutant) != {"name", "file", "old", "new", "tests"}:
                raise ValueError(f"{path.name}: {mutant.get('name')!r} needs name, file, old, new and tests")
            found = (ROOT / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"])
            if found != 1 or mutant["old"] == mutant["new"]:
                raise ValueError(
                    f"{path.name}: {mutant['name']!r}: its old text occurs {found} times in {mutant['file']}"
                )
            if words in (path.stem, "") or words in mutant["name"]:
                chosen.append(mutant)
    return chosen


def copy_of_the_repository(folder: Path) -> None:
    """Every file that git knows or would add, so that the edits never touch the working tree."""
    listed = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def killer(mutant: dict[str, str], folder: Path) -> str | None:
    """The first test that fails with the mutant in place, and passes without it; None if all pass.

    RuntimeError where pytest itself did not run, and for a test that fails without the mutant too.
    """
    path = folder / mutant["file"]
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")
    code, printed = outcome(mutant["tests"].split(), folder)
    path.write_text(text, encoding="utf-8")
    if code in (0, None):
        return None if code == 0 else f"does not end within {LIMIT} s"
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", printed, re.MULTILINE)
    if code not in (1, 2) or failed is None:
        raise RuntimeError(f"{mutant['name']}: pytest ended with {code}\n{printed[-2000:]}")
    code, printed = outcome([failed[1]], folder)
    if code != 0:
        raise RuntimeError(f"{failed[1]} fails without the mutant too\n{printed[-2000:]}")
    return failed[1]


def outcome(tests: list[str], folder: Path) -> tuple[int | None, str]:
    """(pytest's exit code, or None if it did not end in time; what it printed), up to the first failure."""
    output = folder.parent / "output.txt"
    run = multiprocessing.get_context("fork").Process(target=run_tests, args=(tests, folder, output))
    run.start()
    run.join(LIMIT)
    if run.exitcode is None and run.pid is not None:
        os.killpg(run.pid, signal.SIGKILL)
        run.join()
        return None, ""
    return run.exitcode, output.read_text(encoding="utf-8", errors="replace")


def run_tests(tests: list[str], folder: Path, output: Path) -> None:
    """Ends this process, a fork that has imported the libraries but nothing of ours, with the exit code of pytest."""
    os.setsid()  # what it starts can be killed with it
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.dont_write_bytecode = True  # an edit of the same length in the same second would be missed
    packages = [str(folder / name) for name in ("", "kernels", "benchmarks")]
    sys.path[:0] = packages
    os.environ |= {"PYTHONPATH": os.pathsep.join(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    code = pytest.main([*tests, "-x", "-rfE", "--tb=no", "-p", "no:cacheprovider"])
    sys.stdout.flush()
    os._exit(code)


def main(words: str) -> int:
    survivors = 0
    # as tests/conftest.py and the Makefile set them, before the libraries are imported; a GPU is asked for without
    # starting CUDA, which a fork could not use
    os.environ |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    for library in LIBRARIES:
        importlib.import_module(library)
    print(COLUMNS.format("mutant", "s", "killed by"))
    with tempfile.TemporaryDirectory() as name:
        # the optional real data is looked for beside the repository
        folder = Path(name) / "repository"
        copy_of_the_repository(folder)
        if (ROOT.parent / "shared").exists():
            (Path(name) / "shared").symlink_to(ROOT.parent / "shared")
        for mutant in mutants(words):
            start = time.monotonic()
            test = killer(mutant, folder)
            survivors += test is None
            print(COLUMNS.format(mutant["name"], round(time.monotonic() - start), test or "SURVIVES"), flush=True)
    print(f"{survivors} survive")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
