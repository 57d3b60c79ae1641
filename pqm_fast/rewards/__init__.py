"""Step rewards for reinforcement learning, from Q-values."""

from pqm_fast.rewards.spans import step_tokens, token_rewards
from pqm_fast.rewards.step_rewards import REWARDS, step_rewards

__all__ = ["REWARDS", "step_rewards", "step_tokens", "token_rewards"]
