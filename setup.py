"""Builds one distribution with two import packages: pqm_fast (the trainer) and pqm_kernels (the fused op)."""

from setuptools import find_packages, setup

setup(
    packages=["pqm_kernels", *find_packages(include=["pqm_fast", "pqm_fast.*"])],
    # kernels/ itself is never a package: Hugging Face has one named `kernels` that transformers imports.
    package_dir={"pqm_kernels": "kernels/pqm_kernels"},
)
