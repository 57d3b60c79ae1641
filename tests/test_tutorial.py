"""docs/tutorial.md: its options exist, and (slow) its commands run as they stand and train a model that has learned."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs_site.command_line import options_of
from pqm_fast.arguments import parse

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
SERVING = PAGE.index("\n## Serve")
BLOCKS = [
    (match[1], match[2], match.start()) for match in re.finditer(r"^```(bash|python)\n(.*?)^```$", PAGE, re.M | re.S)
]
FIRST = {"train": [], "score": [], "evaluate": [], "status": ["--runs"], "report": ["--runs"]}
"""The commands of the page, with the option that the first words belong to."""


def commands() -> list[list[str]]:
    """The words of each `pqm-fast ...` line of the page."""
    lines = "".join(text for language, text, _ in BLOCKS if language == "bash").replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("pqm-fast ")]


def test_every_command_of_the_page_parses():
    assert {words[0] for words in commands()} == set(FIRST)
    for command, *arguments in commands():
        parse(options_of(command), command, [*FIRST[command], *arguments])


def test_every_python_block_of_the_page_parses():
    for language, text, _ in BLOCKS:
        if language == "python":
            ast.parse(text)


def script(*, serving: bool) -> str:
    """The blocks of the page one after the other, as in one terminal."""
    parts = ["set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for language, text, start in BLOCKS:
        if serving or start < SERVING:
            parts.append(text if language == "bash" else f"python - <<'PYTHON'\n{text}PYTHON")
    return "\n".join(parts)


@pytest.mark.slow
def test_the_page_runs_as_it_stands(shared_data, tmp_path):
    """MODEL has to name a folder of SmolLM2-135M-Instruct; DATA and BENCH may name other files, as on the page."""
    if not os.environ.get("MODEL"):
        pytest.skip("set MODEL to the folder of SmolLM2-135M-Instruct")
    environment = os.environ | {
        "DATA": os.environ.get("DATA") or str(shared_data("prmbench_train.jsonl")),
        "BENCH": os.environ.get("BENCH") or str(shared_data("processbench_gsm8k.json")),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("TRITON_INTERPRET", None)  # set for the other tests; a reader has not set it
    text = script(serving=shutil.which("vllm") is not None)
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
    assert done.returncode == 0, (tmp_path / "log").read_text()[-4000:]
    result = json.loads((tmp_path / "held_out.json").read_text())
    every = result["auroc_by_position"]["all"]
    assert every["auroc"] > max(every["length_only"], every["position_only"])
    assert result["steps"]["pair_accuracy"] > 0.5
