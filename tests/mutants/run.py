"""Breaks the code on purpose and says which test notices: `python tests/mutants/run.py [AREA or words of a name]`.

A mutant is one wrong edit that a person could make. The files beside this one list them, one file for each area:

    - name: what is wrong, in words
      file: pqm_fast/data/pack.py     # the file that is edited
      old: "the text as it is"        # it must occur exactly once
      new: "the text as it becomes"
      tests: tests/data               # what pytest runs, up to the first failure

Exits with 1 if a mutant survives. A mutant whose old text is gone has to be rewritten with the code.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = "{:<58} {:>6}  {}"


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
    """The first test that fails with the mutant in place, or None. RuntimeError where pytest itself did not run."""
    path = folder / mutant["file"]
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")
    packages = os.pathsep.join(str(folder / name) for name in ("", "kernels", "benchmarks"))
    options = ["-x", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *mutant["tests"].split(), *options]
    environment = {**os.environ, "PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    path.write_text(text, encoding="utf-8")
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (1, 2) or failed is None:
        raise RuntimeError(
            f"{mutant['name']}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return failed[1]


def main(words: str) -> int:
    survivors = 0
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
