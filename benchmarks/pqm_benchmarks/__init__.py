"""Benchmarks of pqm-fast: `python -m pqm_benchmarks --help`. They run from a checkout and are not installed.

Later rooms may import earlier ones only: shared < work < kernels < comparison < train < score < gpu.
"""
