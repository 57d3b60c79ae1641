"""Ways to train on the same trajectories, each written as its source computes it, and how they are timed."""
