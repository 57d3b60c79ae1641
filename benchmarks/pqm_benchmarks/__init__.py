"""Benchmarks of pqm-fast: `python -m pqm_benchmarks --help`. They run from a checkout and are not installed.

A folder may import only the folders to its left: shared < work < comparison < kernels < train < score < gpu.
"""
