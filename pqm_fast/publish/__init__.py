"""What others need to use a checkpoint: the model card, the commands that serve it, the hub."""
