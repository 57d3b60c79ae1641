"""The wheel holds its three packages and nothing else, works where it is installed, and hides nobody's package."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the tree: nothing is left in the tree, and nothing in it slips into the wheel."""
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs setuptools>=77")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_SOURCE)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "tree", cwd=folder)
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new virtual environment with the wheel, which sees the dependencies of this one but not its pqm-fast."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    site_packages = next((folder / "lib").glob("python*/site-packages"))
    # a folder that a .pth file names comes last, and .pth files in it (an editable install) are not read
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder, site_packages


def test_wheel_holds_its_packages_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pqm_fast").rglob("*.py")}
    modules |= {path.relative_to(ROOT / "kernels").as_posix() for path in (ROOT / "kernels").rglob("*.py")}
    modules |= {path.relative_to(ROOT / "benchmarks").as_posix() for path in (ROOT / "benchmarks").rglob("*.py")}
    assert {"pqm_fast/data/read.py", "pqm_fast/arithmetic/__init__.py", "pqm_kernels/fused_step_loss/api.py"} <= modules
    assert {"pqm_benchmarks/kernels/run.py", "pqm_benchmarks/train/ways/ladder.py"} <= modules
    assert {name for name in names if name.endswith(".py")} == modules
    parts_of_the_page = {f"pqm_fast/report/{path.name}" for path in (ROOT / "pqm_fast" / "report").glob("*.[cj]s*")}
    assert len(parts_of_the_page) >= 2
    assert parts_of_the_page <= set(names)
    assert {name.partition("/")[0] for name in names} == {
        "pqm_fast",
        "pqm_kernels",
        "pqm_benchmarks",
        "pqm_fast-0.1.0.dist-info",
    }
    assert "pqm_fast-0.1.0.dist-info/licenses/LICENSE" in names


def test_every_folder_of_modules_is_a_package():
    """find_packages passes over a folder without __init__.py, and so would the wheel."""
    folders = {path.parent for path in (ROOT / "pqm_fast").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_installed_packages_are_the_ones_imported(environment, tmp_path):
    folder, site_packages = environment
    code = (
        "import json, pqm_fast, pqm_kernels, pqm_fast.model.step_q_model, pqm_fast.train.loop\n"
        "import importlib.metadata as m\n"
        "from pqm_fast import Scorer, StepQModel\n"
        "files = [p.__file__ for p in (pqm_fast, pqm_kernels, pqm_fast.model.step_q_model, pqm_fast.train.loop)]\n"
        "print(json.dumps([files, m.version('pqm-fast'), len(pqm_kernels.LOSSES)]))"
    )
    files, version, losses = json.loads(run(folder / "bin" / "python", "-c", code, cwd=tmp_path))
    assert all(Path(file).is_relative_to(site_packages) for file in files), files
    assert (version, losses) == ("0.1.0", 8)


@pytest.mark.parametrize("place", ["elsewhere", "the repository"])
def test_the_console_script_runs(environment, tmp_path, place):
    folder, _ = environment
    cwd = ROOT if place == "the repository" else tmp_path
    assert run(folder / "bin" / "pqm-fast", "--help", cwd=cwd).startswith("usage: pqm-fast COMMAND")
    assert run(folder / "bin" / "pqm-fast", "--version", cwd=cwd) == "0.1.0\n"
    assert "--micro-batch-tokens" in run(folder / "bin" / "pqm-fast", "train", "--help", cwd=cwd)


def test_the_folder_of_kernels_hides_no_package(tmp_path):
    """Hugging Face has a package `kernels` that transformers imports: it must be found from the repository root too."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("mark = 'the real one'")
    code = "import kernels; print(kernels.mark, kernels.__file__)"
    assert run(sys.executable, "-c", code, cwd=ROOT, PYTHONPATH=str(tmp_path)).split("one ")[1].strip() == str(
        package / "__init__.py"
    )


def test_transformers_works_from_the_repository_root():
    """Without that package, the folder is no stand-in for it: transformers sees that it is not there."""
    code = (
        "import importlib.util, json, transformers\n"
        "from transformers.utils import is_kernels_available\n"
        "spec = importlib.util.find_spec('kernels')\n"
        "config = transformers.LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,"
        " num_attention_heads=2)\n"
        "model = transformers.AutoModelForTokenClassification.from_config(config)\n"
        "print(json.dumps([spec and spec.origin, is_kernels_available(), type(model).__name__]))"
    )
    origin, available, name = json.loads(run(sys.executable, "-c", code, cwd=ROOT).splitlines()[-1])
    assert name == "LlamaForTokenClassification"
    assert origin is None or not Path(origin).is_relative_to(ROOT / "kernels")
    assert available == (origin is not None)
    assert not (ROOT / "kernels" / "__init__.py").exists()
