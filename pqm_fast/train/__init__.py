"""Training: config -> loop -> checkpoint."""
