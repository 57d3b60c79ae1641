"""Guided search against plain samples with as many tokens, on the arithmetic world. Needs no GPU."""
