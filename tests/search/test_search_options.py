"""The options of `search` on the command line and in their help."""

import subprocess
import sys

import help_text

from pqm_fast.cli import main
from pqm_fast.search.options import SearchConfig


def test_help_explains_every_option(capsys):
    assert main(["search", "--help"]) == 0
    help_text.assert_lists_every_option(capsys.readouterr().out, "pqm-fast search", SearchConfig)


def test_help_needs_no_heavy_package(tmp_path):
    code = (
        "import sys; from pqm_fast.cli import main; code = main(['search', '--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sympy', 'math_verify'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_torchrun_takes_no_option_for_its_own():
    """It completes shortened names, also behind `-m pqm_fast search`: of ours, --n alone; and -n is for that."""
    from torch.distributed.run import get_args_parser

    options = ["--" + name.replace("_", "-") for name, _ in help_text.documented_fields(SearchConfig)]
    names = [name for name in options if name != "--n"]
    arguments = ["pqm_fast", "search", "-n", "16", *(word for name in names for word in (name, "1"))]
    assert get_args_parser().parse_args(["-m", *arguments]).training_script_args == arguments[1:]


def test_n_may_be_written_as_torchrun_needs_it(monkeypatch, tmp_path):
    searched = []
    monkeypatch.setattr("pqm_fast.search.run.search", lambda config, ranks: searched.append(config))
    named = [f"--{name}=x" for name in ("policy", "model", "data", "out")]
    assert main(["search", *named, "-n", "6", "--beam-width", "3"]) == 0
    assert [(config.n, config.beam_width) for config in searched] == [(6, 3)]
