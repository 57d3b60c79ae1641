"""FLOPs of a whole workload: the rows that one way computes times what a row costs in a model."""

from dataclasses import dataclass

PARTS = ("layers", "attention", "heads", "recomputation")
# Query times key and scores times value: two products forward, and the gradients of both factors of each backward.
ATTENTION_FORWARD, ATTENTION_BOTH_PASSES = 2, 6
WEIGHT_BOTH_PASSES = 3  # products that a weight takes part in: one forward, two backward


@dataclass(frozen=True)
class RowCounts:
    """The numbers of rows and attention pairs that one way computes for the whole workload, in any model."""

    tokens: int
    """Rows of every layer."""
    pairs: int
    """Pairs (token, token that it sees) in a layer."""
    last_tokens: int
    """Rows of the last layer's output projection and MLP."""
    scored: int
    """Rows of the value head."""
    logits: bool = False
    """Whether vocabulary logits of all tokens are computed, which no loss reads: forward only."""
    recomputes: bool = False
    """Whether the backward pass computes the layers' forward pass once more."""


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of a model's matrix products without attention: forward + backward of one row, unless noted otherwise."""

    layers: int
    layers_again: int
    """The forward pass that full recomputation repeats."""
    last_rows: int
    """The last layer's output projection and MLP, which are needed only at the rows that are read."""
    value: int
    logits: int
    """Forward only."""
    pair: int
    """One product of attention for one (token, token) pair of one layer, all heads."""
    key_value: int
    """These are not FLOPs, but the numbers in the key and the value of a token, in all layers and heads."""
    depth: int
    """Layers."""
    parameters: int
    non_embedding: int
    """Parameters of the layers and the final norm."""


def training_flops(rows: RowCounts, model: ModelFlops) -> dict[str, int]:
    """FLOPs of the whole workload, forward + backward, by part (PARTS)."""
    pairs = model.depth * rows.pairs
    return {
        "layers": rows.tokens * model.layers + (rows.last_tokens - rows.tokens) * model.last_rows,
        "attention": ATTENTION_BOTH_PASSES * model.pair * pairs,
        "heads": rows.scored * model.value + (rows.tokens * model.logits if rows.logits else 0),
        "recomputation": rows.tokens * model.layers_again + ATTENTION_FORWARD * model.pair * pairs
        if rows.recomputes
        else 0,
    }


def scoring_flops(rows: RowCounts, model: ModelFlops) -> dict[str, int]:
    """FLOPs of the whole workload, forward only, by part (PARTS without recomputation)."""
    pairs = model.depth * rows.pairs
    saved = (rows.tokens - rows.last_tokens) * model.last_rows
    return {
        "layers": (rows.tokens * model.layers - saved) // WEIGHT_BOTH_PASSES,
        "attention": ATTENTION_FORWARD * model.pair * pairs,
        "heads": rows.scored * model.value // WEIGHT_BOTH_PASSES + (rows.tokens * model.logits if rows.logits else 0),
    }
