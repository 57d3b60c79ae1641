"""The rates that the simulation takes, and the time of a decoder layer at these rates."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pqm_benchmarks.shared.shapes import Shape

Amount = TypeVar("Amount", float, np.ndarray)

# Operations for a pair of a token and one that it attends to, for each number of a layer's heads: flash attention
# computes the scores again in its backward pass.
PAIR_FORWARD, PAIR_BACKWARD = 4, 10
TOKEN_FORWARD, TOKEN_BACKWARD = 2, 4  # for each parameter


@dataclass(frozen=True)
class Rates:
    """Stated, not measured in a run of many ranks; a second of compute is as short as it can be, so that the network
    has the least time to hide in."""

    matrix_flops: float = 780e12
    """Operations of large products in bfloat16 a second, for an H100."""
    attention_share: float = 0.5
    """The part of that rate which attention reaches."""
    nvlink_bytes: float = 450e9
    """Bytes a second of a GPU in each direction, within a node."""
    network_bytes: float = 50e9
    """Bytes a second of the network card of a GPU in each direction, between nodes: 400 Gbit/s."""
    reached: float = 0.8
    """The part of both that a collective reaches."""
    nvlink_hop: float = 1e-6
    """Seconds until a message of a ring arrives, within a node."""
    network_hop: float = 5e-6
    """Seconds until it arrives in the next node."""
    node: int = 8
    """GPUs of a node."""


def layer_parameters(shape: Shape) -> int:
    """Parameters of one decoder layer: matrices, the biases that Qwen2 gives query, key and value, two norms."""
    width, wide, kv = shape.hidden_size, shape.intermediate_size, shape.num_key_value_heads * shape.head_dim
    biases = width + 2 * kv if shape.model_type == "qwen2" else 0
    return 2 * width * width + 2 * width * kv + 3 * width * wide + biases + 2 * width


def root_parameters(shape: Shape) -> int:
    """Parameters outside the layers that are sharded: the embedding and the last norm."""
    return (shape.vocab_size + 1) * shape.hidden_size


def layer_seconds(shape: Shape, tokens: Amount, pairs: Amount, rates: Rates) -> tuple[Amount, Amount]:
    """(forward, backward) of one decoder layer for micro-batches of so many computed tokens and attention pairs."""
    token = layer_parameters(shape) / rates.matrix_flops
    pair = shape.num_attention_heads * shape.head_dim / (rates.attention_share * rates.matrix_flops)
    return (
        TOKEN_FORWARD * token * tokens + PAIR_FORWARD * pair * pairs,
        TOKEN_BACKWARD * token * tokens + PAIR_BACKWARD * pair * pairs,
    )
