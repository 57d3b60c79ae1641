"""`pqm-fast probe`: Q-value heads on the hidden states of a frozen decoder, which are computed once."""
