"""The options of `sample` and `annotate` on the command line and in their help."""

import subprocess
import sys
from pathlib import Path

import help_text
import pytest

from pqm_fast.cli import main
from pqm_fast.sample.options import AnnotateConfig, PolicyOptions, SampleConfig


@pytest.mark.parametrize(("command", "config"), [("sample", SampleConfig), ("annotate", AnnotateConfig)])
def test_help_explains_every_option(command, config, capsys):
    assert main([command, "--help"]) == 0
    help_text.assert_lists_every_option(capsys.readouterr().out, f"pqm-fast {command}", config)


@pytest.mark.parametrize("command", ["sample", "annotate"])
def test_help_needs_no_heavy_package(command, tmp_path):
    code = (
        f"import sys; from pqm_fast.cli import main; code = main(['{command}', '--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sympy', 'math_verify'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--policy", "a", "--policy", "b"], ("a", "b")),
        (["--policy", "a", "b"], ("a", "b")),
        (["--policy=a", "--seed", "3", "--policy", "b", "c"], ("a", "b", "c")),
        (["--policy", "http://h:1/v1#m=x"], ("http://h:1/v1#m=x",)),
    ],
)
def test_policies_on_the_command_line(monkeypatch, tmp_path, arguments, expected):
    seen: list[SampleConfig] = []
    monkeypatch.setattr(
        "pqm_fast.sample.sample_solutions.sample", lambda config, ranks: seen.append(config) or Path("x")
    )
    assert main(["sample", "--data", "q.jsonl", *arguments, "-n", "9", "--out", "o"]) == 0
    file = tmp_path / "options.yaml"
    file.write_text("policy: [z, y]\ndata: q.jsonl\nn: 4\nout: o\nwriting: {parallel: 3}\n")
    assert main(["sample", "--config", str(file), *arguments]) == 0
    assert main(["sample", "--config", str(file)]) == 0
    assert [(c.policy, c.n) for c in seen] == [(expected, 9), (expected, 4), (("z", "y"), 4)]
    assert [c.writing for c in seen] == [PolicyOptions(), PolicyOptions(parallel=3), PolicyOptions(parallel=3)]
