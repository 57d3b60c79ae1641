"""The fused op timed against the published computation, eager PyTorch and torch.compile."""
