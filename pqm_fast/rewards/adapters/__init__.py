"""Rewards for reinforcement learning with other libraries, and scores for their searches. No library is needed to
import them."""

from pqm_fast.rewards.adapters.its_hub import ItsHubPRM
from pqm_fast.rewards.adapters.openrlhf import openrlhf_reward
from pqm_fast.rewards.adapters.search_and_learn import SearchAndLearnPRM
from pqm_fast.rewards.adapters.trl import trl_reward
from pqm_fast.rewards.adapters.verl import verl_reward, verl_step_rewards

__all__ = [
    "ItsHubPRM",
    "SearchAndLearnPRM",
    "openrlhf_reward",
    "trl_reward",
    "verl_reward",
    "verl_step_rewards",
]
