"""One distribution, three import packages: pqm_fast (the trainer), pqm_kernels (the fused op), pqm_benchmarks."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages("kernels", include=["pqm_kernels", "pqm_kernels.*"]),
        *find_packages("benchmarks", include=["pqm_benchmarks", "pqm_benchmarks.*"]),
        *find_packages(include=["pqm_fast", "pqm_fast.*"]),
    ],
    # kernels/ itself is never a package: Hugging Face has one named `kernels` that transformers imports.
    package_data={"pqm_fast.report": ["*.css", "*.js"]},
    package_dir={"pqm_kernels": "kernels/pqm_kernels", "pqm_benchmarks": "benchmarks/pqm_benchmarks"},
)
