"""Communication of FSDP2 beside computation: bytes, seconds, and what of it cannot hide.

Weights are gathered in bfloat16 for the forward pass of a layer and again for its backward pass, in every round of
micro-batches, and gradients are scattered in float32. Collectives run in rings.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pqm_benchmarks.scaling.cases import BUDGET, BUDGETS, MANY, NETWORK_SHAPES, RANKS, SHAPE
from pqm_benchmarks.scaling.rates import Rates, layer_parameters, layer_seconds, root_parameters
from pqm_benchmarks.shared.shapes import ALL_SHAPES, LARGE_SHAPES, Shape

WEIGHT_BYTES, GRADIENT_BYTES = 2, 4
STATE_BYTES = 16  # of a parameter: 2 weight, 2 low half of its master, 8 moments, 4 gradient

WAYS = {
    "nodes": "all ranks hold a shard; the rings of a node leave it through 8 network cards",
    "alone": "all ranks hold a shard; every byte of a rank goes through its own card",
    "hybrid": "the 8 ranks of a node hold a shard each, and nodes sum their gradients",
}


@dataclass(frozen=True)
class Collectives:
    """Seconds of the collectives for one set of parameters."""

    gather: float
    scatter: float
    reduce: float
    """The sum of the gradients of a shard across nodes (hybrid sharding), on the network card alone."""


@dataclass(frozen=True)
class Round:
    """One micro-batch on each rank. Bytes are those that a rank receives; it sends as many."""

    received_bytes: float
    """Of all collectives, by whatever link."""
    network_bytes: float
    """Through the network card of a GPU."""
    compute: float
    """Seconds."""
    communication: float
    """Seconds of the busiest link."""
    seconds: float
    """Of the round, with all that does not hide."""
    state_bytes: float
    """That a rank keeps: its shard of weights, masters, moments and gradients, and the gathered embedding."""

    @property
    def exposed(self) -> float:
        """The share of the round in which nothing is computed."""
        return 1 - self.compute / self.seconds


def ring_seconds(size: float, ranks: int, per_node: int, rates: Rates) -> float:
    """A gather or scatter of `size` bytes over `ranks`. The rings of a node leave it through a network card each, so a
    card carries one part in `per_node` of the bytes."""
    nodes = -(-ranks // per_node)
    moved = (ranks - 1) / ranks * size / rates.reached
    within = moved / rates.nvlink_bytes if min(per_node, ranks) > 1 else 0.0
    between = moved / per_node / rates.network_bytes if nodes > 1 else 0.0
    return max(within, between) + (nodes - 1) * rates.network_hop + (ranks - nodes) * rates.nvlink_hop


def collectives(parameters: int, ranks: int, way: str, rates: Rates) -> Collectives:
    """Those of `parameters` that are gathered and scattered together."""
    weights, gradients = WEIGHT_BYTES * parameters, GRADIENT_BYTES * parameters
    per_node = 1 if way == "alone" else rates.node
    shards, copies = _shards_and_copies(ranks, way, rates)
    # a ring of scatters, then one of gathers; each rank of a node reduces its own shard through its own card
    reduce = 2 * ring_seconds(gradients / shards, copies, 1, rates)
    return Collectives(
        gather=ring_seconds(weights, shards, per_node, rates),
        scatter=ring_seconds(gradients, shards, per_node, rates),
        reduce=reduce,
    )


def simulate_round(shape: Shape, tokens: int, pairs: float, ranks: int, way: str, rates: Rates) -> Round:
    """One round of micro-batches of `tokens` tokens and `pairs` attention pairs each."""
    forward, backward = layer_seconds(shape, float(tokens), pairs, rates)
    depth = shape.num_hidden_layers
    layer = collectives(layer_parameters(shape), ranks, way, rates)
    root = collectives(root_parameters(shape), ranks, way, rates)
    gathered = WEIGHT_BYTES * (2 * depth * layer_parameters(shape) + root_parameters(shape))
    parameters = depth * layer_parameters(shape) + root_parameters(shape)
    shards, copies = _shards_and_copies(ranks, way, rates)
    within = (shards - 1) / shards * (gathered + GRADIENT_BYTES * parameters)
    across = 2 * (copies - 1) / copies * GRADIENT_BYTES * parameters / shards
    per_node = 1 if way == "alone" else rates.node
    links = depth * (2 * layer.gather + layer.scatter) + root.gather + root.scatter
    return Round(
        received_bytes=within + across,
        network_bytes=across if copies > 1 else within / per_node if ranks > per_node else 0.0,
        compute=depth * (forward + backward),
        communication=max(links, depth * layer.reduce + root.reduce),
        seconds=round_seconds(depth, forward, backward, layer, root),
        state_bytes=STATE_BYTES * parameters / shards + WEIGHT_BYTES * root_parameters(shape),
    )


def _shards_and_copies(ranks: int, way: str, rates: Rates) -> tuple[int, int]:
    shards = min(rates.node, ranks) if way == "hybrid" else ranks
    return shards, ranks // shards


def round_seconds(depth: int, forward: float, backward: float, layer: Collectives, root: Collectives) -> float:
    """Seconds until the round is done. The links do one collective at a time, in the order in which FSDP2 starts them;
    sums across nodes run beside them.

    The gather of the next layer starts when a layer begins to compute, so one gather is ahead. The backward pass begins
    with a gather that nothing hides, as reshard_after_forward frees the last layer too.
    """
    link = root.gather + layer.gather
    compute, ready = 0.0, link
    for number in range(depth):
        start = max(compute, ready)
        if number + 1 < depth:
            link = ready = max(link, start) + layer.gather
        compute = start + forward
    link = ready = max(link, compute) + layer.gather
    across = 0.0
    for number in range(depth):
        start = max(compute, ready)
        if number + 1 < depth:
            link = ready = max(link, start) + layer.gather
        compute = start + backward
        link = max(link, compute) + layer.scatter
        across = max(across, link) + layer.reduce
    link = max(link, compute) + root.scatter
    return max(across, link) + root.reduce


def network_rows(pairs_of_a_token: float, rates: Rates) -> list[dict[str, Any]]:
    """{"shape", "way", "ranks", "tokens", "exposed", fields of Round} of each model, way and number of ranks, and of
    one of them for several sizes of micro-batch."""
    cases = [(shape, way, ranks, BUDGET) for shape in NETWORK_SHAPES for way in WAYS for ranks in RANKS]
    cases += [(SHAPE, way, MANY, tokens) for way in WAYS for tokens in BUDGETS if tokens != BUDGET]
    rows = []
    for name, way, ranks, tokens in cases:
        shape = (ALL_SHAPES | LARGE_SHAPES)[name]
        found = simulate_round(shape, tokens, pairs_of_a_token * tokens, ranks, way, rates)
        row = {"shape": name, "way": way, "ranks": ranks, "tokens": tokens}
        rows.append(row | asdict(found) | {"exposed": found.exposed})
    return rows
