"""The distribution pqm-fast: pqm_fast (the trainer) and pqm_kernels (the fused op, which installs alone too)."""

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel


class EditableInstall(editable_wheel):
    """Adds pqm_benchmarks to an editable install. Benchmarks run from a checkout, so a wheel leaves them out."""

    def finalize_options(self):
        self.distribution.packages += find_packages("benchmarks", include=["pqm_benchmarks", "pqm_benchmarks.*"])
        self.distribution.package_dir["pqm_benchmarks"] = "benchmarks/pqm_benchmarks"
        super().finalize_options()


setup(
    cmdclass={"editable_wheel": EditableInstall},
    packages=[
        *find_packages("kernels", include=["pqm_kernels", "pqm_kernels.*"]),
        *find_packages(include=["pqm_fast", "pqm_fast.*"]),
    ],
    # kernels/ itself is never a package: Hugging Face has one named `kernels` that transformers imports.
    package_data={"": ["py.typed"], "pqm_fast.report": ["*.css", "*.js"]},
    package_dir={"pqm_kernels": "kernels/pqm_kernels"},
)
