"""Solutions sampled from policies, and step labels from Monte-Carlo rollouts."""
