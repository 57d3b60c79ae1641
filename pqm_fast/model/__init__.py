"""A decoder with a Q-value head, on packed batches."""
