"""The stage that runs the project's own tests on a card: outcomes at once, whatever becomes of the run."""

import json

import pytest
from pqm_benchmarks.gpu import tests

from pqm_fast.errors import PQMError


@pytest.fixture
def suite(monkeypatch, tmp_path):
    """A checkout whose tests are these, run without plugins that they do not need, which take long to load."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")
    folder = tmp_path / "checkout" / "tests"
    folder.mkdir(parents=True)
    (folder / "test_some.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2, 'not alike'\n"
        "@pytest.mark.skip(reason='no')\n"
        "def test_left_out(): pass\n"
        "@pytest.fixture\n"
        "def broken(): raise RuntimeError('no fixture')\n"
        "def test_without_its_fixture(broken): pass\n"
    )
    (folder / "test_right.py").write_text("def test_a(): pass\n")
    (folder / "test_broken.py").write_text("import nowhere_at_all\n")
    monkeypatch.setattr(tests, "ROOT", folder.parent)
    return folder


def test_outcomes_are_counted_and_failures_told_by_name(job, suite, stored):
    """A crash loses one test."""
    cases = "".join(f"def test_{i}(): pass\n" for i in range(20))
    # a moment later: xdist itself fails if a worker dies while it is being sent the next tests
    (suite / "test_crash.py").write_text(f"import os, time\ndef test_crash():\n time.sleep(1)\n os._exit(9)\n{cases}")
    with pytest.raises(PQMError, match=r"^3 failed$"):
        tests._run(job, ((["tests/test_some.py", "tests/test_crash.py"], 2), (["tests/test_right.py"], 0)))
    figures = stored()["figures"]
    assert (figures["passed"], figures["failed"], figures["skipped"]) == (22, 3, 1)
    assert figures["headline"] == "22 passed, 3 failed, 1 skipped"
    assert figures["failures"].keys() == {
        "tests/test_some.py::test_wrong", "tests/test_some.py::test_without_its_fixture",
        "tests/test_crash.py::test_crash",
    }  # fmt: skip
    assert "not alike" in figures["failures"]["tests/test_some.py::test_wrong"]
    assert "crashed" in figures["failures"]["tests/test_crash.py::test_crash"]
    assert figures["unfinished"] == 0


def test_failures_run_again_by_name(job, suite, stored):
    earlier = suite.parent / "earlier"
    earlier.mkdir()
    failed = {"tests/test_some.py::test_right": "was wrong once"}
    (earlier / "summary.json").write_text(json.dumps([{"figures": {}}, {"figures": {"failures": failed}}]))
    job.earlier = earlier
    tests.again(job)
    assert stored()["figures"]["headline"] == "1 passed, 0 failed, 0 skipped"
    (earlier / "summary.json").write_text(json.dumps([{"figures": {"failures": {}}}]))
    assert job.do("pqm_benchmarks.gpu.tests:again") == 0
    assert (stored()["status"], stored()["why"]) == ("skipped", "no test had failed")


def test_no_tests_and_tests_that_cannot_be_collected_are_failures(job, suite, stored):
    with pytest.raises(PQMError, match=r"^1 failed; pytest ended with exit code 2; pytest ended with exit code 5$"):
        tests._run(job, ((["tests/test_broken.py"], 0), (["tests/test_right.py", "-k", "nothing"], 0)))
    assert "nowhere_at_all" in stored()["figures"]["failures"]["tests/test_broken.py"]


def test_a_broken_device_loses_one_test(job, suite, stored):
    """CUDA fails in every call after an illegal access; here it is one that is made up."""
    cases = "".join(f"def test_{i}(): pass\n" for i in range(20))
    (suite / "test_poison.py").write_text(
        "import sys\n"
        "from types import SimpleNamespace\n"
        "def test_poison():\n"
        "    def broken(): raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "    cuda = SimpleNamespace(is_initialized=lambda: True, synchronize=broken)\n"
        "    sys.modules['torch'] = SimpleNamespace(cuda=cuda)\n"
        "    assert False, 'wrong'\n" + cases
    )
    with pytest.raises(PQMError):
        tests._run(job, ((["tests/test_poison.py"], 1),))
    figures = stored()["figures"]
    assert figures["passed"] == 20
    assert figures["failures"].keys() == {"tests/test_poison.py::test_poison"}


def test_what_is_chosen_is_there():
    for arguments, _ in (tests.KERNELS, tests.NEED_GPU, *tests.ON_CPU):
        assert all((tests.ROOT / name).exists() for name in arguments if name.startswith("tests"))
