"""Solutions sampled from policies, and step labels from Monte-Carlo rollouts.

Questions are read (`read_questions`), a policy writes solutions (`policy`, `open_policy`), and the results are written
to a file (`sample_solutions`, `annotate`).
"""
