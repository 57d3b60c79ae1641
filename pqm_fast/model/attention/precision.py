"""What attention computes in."""

import torch


def compute_dtype(value: torch.Tensor) -> torch.dtype:
    """Autocast's dtype where it is on (rotary embeddings leave queries and keys in float32 under it), else value's."""
    kind = value.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
