"""The stand-ins for the published files, and one reproduction from them."""

import gc
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import pytest
from published_files import command_line, write_world

from pqm_fast.cli import main
from pqm_fast.model import step_q_model
from pqm_fast.train import loop


@contextmanager
def without_slow_extras():
    """Curves of the trainings take longer than these, and so does collecting the garbage of all tests. Each model is
    checked before it is used, in several passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: 0)
        patch.setattr(loop, "draw_curve", lambda folder: None)
        patch.setattr(step_q_model, "check_packing", lambda model: None)
        yield


@pytest.fixture(autouse=True)
def no_slow_extras():
    """For each test by itself: tests of other folders may run between those of this one."""
    with without_slow_extras():
        yield


@pytest.fixture(scope="package")
def world(tmp_path_factory):
    """Options for files that no test changes."""
    return write_world(tmp_path_factory.mktemp("published"))


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing one takes as long as the trainings. The first reproduction has one."""
    monkeypatch.setattr("pqm_fast.reproduce.run.draw", lambda results, path: None)


@pytest.fixture
def reproduce(world, tmp_path, no_picture):
    """Runs the command with the options of the world and others; returns its exit code."""

    def run(out="out", **options):
        return main(["reproduce", "pqm", "--out", str(tmp_path / out), *command_line(world | options)])

    return run


@pytest.fixture(scope="package")
def finished(world, tmp_path_factory):
    """A reproduction, and what it printed."""
    folder = tmp_path_factory.mktemp("reproduced") / "out"
    with without_slow_extras(), redirect_stdout(StringIO()) as out:
        assert main(["reproduce", "pqm", "--out", str(folder), *command_line(world)]) == 0
    return folder, out.getvalue()
