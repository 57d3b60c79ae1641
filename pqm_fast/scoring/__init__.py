"""Scoring: Q-values for the steps of solutions, from Python and for whole files."""
