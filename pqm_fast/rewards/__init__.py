"""Step rewards for reinforcement learning, from Q-values."""
