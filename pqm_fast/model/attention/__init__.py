"""How packed tokens attend: each to the tokens before it in its own trajectory, whatever else is in the batch.

A `Planner` turns the layout of a batch into a `BatchPlan`, which travels with the forward call as the keyword `plan` to
the attention implementation `packed.PACKED_ATTENTION`. Plain packing and prefix trees share one rule
(`AttentionPaths`): the queries of a sequence see the path that ends with them.

The workers of a data loader make plans, and import this package for it, but not `packed`: transformers takes seconds.
"""

from pqm_fast.model.attention.backend import BACKENDS, Backend, choose_backend
from pqm_fast.model.attention.plan import BatchPlan, HeadRows, Planner

__all__ = [
    "BACKENDS",
    "Backend",
    "BatchPlan",
    "HeadRows",
    "Planner",
    "choose_backend",
]
