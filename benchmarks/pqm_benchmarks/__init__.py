"""Benchmarks of pqm-fast: what `pqm-fast bench` runs."""
