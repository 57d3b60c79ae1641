"""Training: options -> run -> loop -> checkpoints and a finished model."""
