"""The wheels hold their packages and nothing else, work where they are installed, and hide no other package."""

import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSION = (ROOT / "kernels" / "VERSION").read_text().strip()
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
def tree(tmp_path_factory):
    """A copy of the repository to build from: nothing is left in the repository, and nothing but sources is in it."""
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs setuptools>=77")
    folder = tmp_path_factory.mktemp("tree") / "repository"
    shutil.copytree(ROOT, folder, ignore=NOT_SOURCE)
    return folder


def build(project, folder):
    """The wheel of `project`, built without network."""
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, project, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


def install(folder, wheel):
    """Makes a new virtual environment and installs into it; returns its Python and its site-packages."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    return python, next((folder / "lib").glob("python*/site-packages"))


def link_distributions(folder, *names):
    """Fills `folder` with links to the installed distributions and to all that they require."""
    folder.mkdir()
    names = list(names)
    for name in names:  # grows
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
        required = {re.match(r"[\w.-]+", line)[0] for line in distribution.requires or () if "extra ==" not in line}
        names += sorted(required - set(names))


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    return build(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new virtual environment with the wheel, which sees the dependencies of this one but not its pqm-fast."""
    folder = tmp_path_factory.mktemp("environment")
    _, site_packages = install(folder, wheel)
    # a folder that a .pth file names comes last, and .pth files in it (an editable install) are not read
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder, site_packages


def modules_in(folder, package):
    return {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder / package).rglob("*.py")}


def test_wheel_holds_its_packages_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = modules_in(".", "pqm_fast") | modules_in("kernels", "pqm_kernels")
    assert {"pqm_fast/data/read.py", "pqm_fast/arithmetic/__init__.py", "pqm_kernels/fused_step_loss/api.py"} <= modules
    assert {name for name in names if name.endswith(".py")} == modules
    assert {"pqm_fast/py.typed", "pqm_kernels/py.typed"} <= names
    parts_of_the_page = {f"pqm_fast/report/{path.name}" for path in (ROOT / "pqm_fast" / "report").glob("*.[cj]s*")}
    assert len(parts_of_the_page) >= 2
    assert parts_of_the_page <= set(names)
    metadata = f"pqm_fast-{VERSION}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"pqm_fast", "pqm_kernels", metadata}
    assert f"{metadata}/licenses/LICENSE" in names


def test_the_kernels_install_alone(tree, tmp_path):
    """Their wheel, in an environment that has torch, triton and what these require, and nothing else."""
    wheel = build(tree / "kernels", tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = f"pqm_kernels-{VERSION}.dist-info"
    assert {name for name in names if name.endswith(".py")} == modules_in("kernels", "pqm_kernels")
    assert "pqm_kernels/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"pqm_kernels", metadata}
    assert f"{metadata}/licenses/LICENSE" in names
    python, site_packages = install(tmp_path / "environment", wheel)
    link_distributions(tmp_path / "dependencies", "torch", "triton")
    (site_packages / "dependencies.pth").write_text(f"{tmp_path / 'dependencies'}\n")
    code = (
        "import importlib.metadata as m, importlib.util, json, re\n"
        "import torch, pqm_kernels as k\n"
        "a = torch.tensor\n"
        "out = k.step_loss(torch.ones(1, 2), a([0]), a([1.0]), a([0, 1]), torch.zeros(2), backend='eager')\n"
        "absent = [name for name in ('pqm_fast', 'transformers', 'yaml') if importlib.util.find_spec(name) is None]\n"
        "requires = [re.match('[a-z]+', line)[0] for line in m.requires('pqm-kernels')]\n"
        "print(json.dumps([k.__file__, m.version('pqm-kernels'), requires, absent, out.loss.item()]))"
    )
    file, version, requires, absent, loss = json.loads(run(python, "-c", code, cwd=tmp_path))
    assert Path(file).is_relative_to(site_packages)
    assert (version, requires) == (VERSION, ["torch", "triton"])
    assert absent == ["pqm_fast", "transformers", "yaml"]
    assert loss == pytest.approx(math.log(2))


def test_an_editable_install_has_the_benchmarks_too(tree, tmp_path):
    code = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=tree)  # as pip does, which would do it in the new environment
    [wheel] = tmp_path.glob("*.whl")
    python, _ = install(tmp_path / "environment", wheel)
    code = (
        "import importlib.metadata as m, importlib.util, json\n"
        "names = ('pqm_fast', 'pqm_kernels', 'pqm_benchmarks')\n"
        "print(json.dumps([m.version('pqm-fast'), *(importlib.util.find_spec(name).origin for name in names)]))"
    )
    version, *files = json.loads(run(python, "-c", code, cwd=tmp_path))
    assert version == VERSION
    folders = ("pqm_fast", "kernels/pqm_kernels", "benchmarks/pqm_benchmarks")
    assert files == [str(tree / folder / "__init__.py") for folder in folders]


def test_the_citation_has_the_version():
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_folder_of_modules_is_a_package():
    """find_packages passes over a folder without __init__.py, and so would the wheel."""
    folders = {path.parent for path in (ROOT / "pqm_fast").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_installed_packages_are_the_ones_imported(environment, tmp_path):
    folder, site_packages = environment
    code = (
        "import importlib.metadata as m, importlib.util, json\n"
        "names = ('pqm_fast', 'pqm_kernels', 'pqm_fast.model.step_q_model', 'pqm_fast.train.loop')\n"
        "print(json.dumps([[importlib.util.find_spec(name).origin for name in names], m.version('pqm-fast')]))"
    )
    files, version = json.loads(run(folder / "bin" / "python", "-c", code, cwd=tmp_path))
    assert all(Path(file).is_relative_to(site_packages) for file in files), files
    assert version == VERSION


def test_the_console_script_runs(environment, tmp_path):
    folder, _ = environment
    assert run(folder / "bin" / "pqm-fast", "--help", cwd=ROOT).startswith("usage: pqm-fast COMMAND")
    assert run(folder / "bin" / "pqm-fast", "--version", cwd=tmp_path) == f"{VERSION}\n"
    assert "--micro-batch-tokens" in run(folder / "bin" / "pqm-fast", "train", "--help", cwd=tmp_path)


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
        "import importlib.util, json\n"
        "from transformers.utils import is_kernels_available\n"
        "spec = importlib.util.find_spec('kernels')\n"
        "print(json.dumps([spec and spec.origin, is_kernels_available()]))"
    )
    origin, available = json.loads(run(sys.executable, "-c", code, cwd=ROOT).splitlines()[-1])
    assert origin is None or not Path(origin).is_relative_to(ROOT / "kernels")
    assert available == (origin is not None)
    assert not (ROOT / "kernels" / "__init__.py").exists()
