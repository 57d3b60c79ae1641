"""Tiny runs of `python -m pqm_benchmarks score` and `train` on the CPU."""

import functools
import gc
import json

import pytest
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.gpu.job import Job
from pqm_benchmarks.shared import timing, workload

SIZES = {"score": ["--questions", "2", "--solutions", "6"], "train": ["--questions", "1", "--steps", "2"]}


def shorten(patch):
    """Makes solutions of about 60 tokens instead of 300, which share as much."""
    for name, value in {"MU": 4.0, "QUESTION_MEDIAN": 12, "STEP": 7}.items():
        patch.setattr(workload, name, value)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Medians of few calls. Garbage, which a benchmark collects after everything that it tries, is looked for in what
    these tests have made, not in all that was loaded before."""
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "SECONDS_PER_MEDIAN", 0.0)
        yield
    gc.unfreeze()


@pytest.fixture
def short(monkeypatch):
    shorten(monkeypatch)


@pytest.fixture(scope="session")
def bench():
    """Call with score or train, the folder and further options: the exit code."""

    def run(name, out, *options):
        short = ["--device", "cpu", "--seconds", "0", "--rounds", "2", *SIZES[name]]
        return main([name, "--out", str(out), *short, *options])

    return run


@pytest.fixture(scope="session")
def whole_run(bench, tmp_path_factory):
    """Call with score or train: the folder of a run of everything with short solutions, made once."""

    @functools.cache
    def folder(name):
        made = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            shorten(patch)
            assert bench(name, made) == 0
        gc.freeze()  # what the first run has loaded
        return made

    return folder


@pytest.fixture
def job(tmp_path):
    """Of a stage of `python -m pqm_benchmarks gpu`, on the CPU."""
    return Job("cpu", tmp_path, tmp_path / "report.json")


@pytest.fixture
def stored(job):
    """Call: what the stage has told so far."""
    return lambda: json.loads(job.report.read_text())
