"""How packed tokens attend: each to the tokens before it in its own trajectory, whatever else is in the batch.

A `Planner` turns the layout of a batch into a `BatchPlan`, which travels with the forward call as the keyword `plan` to
the attention implementation `PACKED_ATTENTION`. Plain packing and prefix trees share one rule (`AttentionPaths`): the
queries of a sequence see the path that ends with them.
"""

from pqm_fast.model.attention.backend import BACKENDS, Backend, choose_backend
from pqm_fast.model.attention.packed import PACKED_ATTENTION, packed_attention
from pqm_fast.model.attention.plan import BatchPlan, HeadRows, Planner

__all__ = [
    "BACKENDS",
    "PACKED_ATTENTION",
    "Backend",
    "BatchPlan",
    "HeadRows",
    "Planner",
    "choose_backend",
    "packed_attention",
]
