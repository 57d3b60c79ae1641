"""Decoders with a Q-value head on packed batches: loaded, checked, run and saved."""
