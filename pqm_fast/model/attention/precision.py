"""The dtype that attention computes in."""

import torch


def compute_dtype(value: torch.Tensor) -> torch.dtype:
    """Autocast's dtype where autocast is on, otherwise the dtype of `value`. (Under autocast, rotary embeddings leave
    queries and keys in float32.)"""
    device_type = value.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else value.dtype
