"""The operations of training and scoring, counted for the published computation and for ours. Needs no GPU."""
