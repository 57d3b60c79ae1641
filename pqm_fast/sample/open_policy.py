"""Opens the policy that a name on the command line refers to."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.sample.options import PolicyOptions
from pqm_fast.sample.policy import Policy
from pqm_fast.sample.policy_name import parse_policy


def open_policy(
    text: str,
    options: PolicyOptions,
    show_progress: Callable[[str], Any] = lambda message: None,
    ranks: Ranks = ALONE,
) -> Policy:
    """Raises PQMError if the policy does not exist or cannot be loaded. A server is contacted by requests only, and the
    ranks divide its `parallel` requests among them.

    A policy that writes in batches calls `show_progress` now and then with a line on how far its batch is.
    """
    name = parse_policy(text)
    # imported here: each kind needs packages that the others do without
    if name.kind == "server":
        from pqm_fast.sample.server_policy import ServerPolicy

        own = replace(options, parallel=max(1, options.parallel // ranks.world))
        return ServerPolicy(name.url, name.model, own)
    if name.kind == "arithmetic":
        from pqm_fast.sample.arithmetic_policy import ArithmeticPolicy

        return ArithmeticPolicy(name.model)
    from pqm_fast.sample.local_policy import LocalPolicy

    return LocalPolicy(name.model, options, show_progress)
