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
