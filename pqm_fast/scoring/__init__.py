"""Q-values for solutions: from Python, and for whole files."""
