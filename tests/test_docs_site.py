"""The hooks that build the documentation site. `make docs` itself checks every link and anchor."""

from importlib import import_module
from pathlib import Path

import pytest
from help_text import documented_fields

from docs_site import command_line, source_pages
from pqm_fast.cli import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_a_command_has_every_option(command):
    page = command_line.options_page(command)
    options = command_line.options_of(command)
    missing = [name for name, _ in documented_fields(options) if f"### `--{name.replace('_', '-')}` {{ #" not in page]
    assert not missing
    assert "None`" not in page.replace("default `None`", "")  # types are in words


@pytest.mark.parametrize(
    ("page", "link", "target"),
    [
        (
            "docs/explanation/kernels.md",
            "../../kernels/pqm_kernels/losses.py",
            "source/kernels/pqm_kernels/losses.py.md",
        ),
        ("docs/log.md", "../pqm_fast/model/attention", "source/pqm_fast/model/attention/index.md"),
        ("docs/evidence/study.md", "../../benchmarks/README.md", "source/benchmarks/README.md"),
        ("benchmarks/README.md", "../docs/log.md", "log.md"),
        ("pqm_fast/model/attention", "plan.py", "source/pqm_fast/model/attention/plan.py.md"),
    ],
)
def test_links_between_pages_and_files(page, link, target):
    path = source_pages.resolve(page, link)
    assert source_pages.uri(path) == target
    assert source_pages.origin_of(target) == path


@pytest.mark.parametrize(
    ("package", "page"),
    [
        ("pqm_fast", "pqm_fast"),
        ("pqm_fast.data", "data"),
        ("pqm_fast.evaluate", "evaluate"),
        ("pqm_fast.rewards", "rewards"),
        ("pqm_fast.rewards.adapters", "rewards"),
        ("pqm_kernels", "pqm_kernels"),
    ],
)
def test_every_public_name_is_in_the_reference(package, page):
    text = (Path(__file__).parents[1] / "docs" / "reference" / "api" / f"{page}.md").read_text(encoding="utf-8")
    assert not [name for name in import_module(package).__all__ if f".{name}\n" not in text and f".{name}`" not in text]
