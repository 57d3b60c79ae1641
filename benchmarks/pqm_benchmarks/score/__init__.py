"""Scoring the candidates of a Best-of-N: ours against the published way and transformers."""
