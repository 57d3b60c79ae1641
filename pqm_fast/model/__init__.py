"""Loads, checks, runs and saves decoders with a Q-value head on packed batches."""
