"""What a study or the demo trains with: a loss by itself, or one with a comparison of solutions added to it."""

from typing import NamedTuple

from pqm_kernels.losses import LOSSES

from pqm_fast.errors import PQMError


class Combination(NamedTuple):
    """What `pqm-fast train` takes as --loss and --compare."""

    loss: str
    compare: str | None = None

    @property
    def uses_zeta(self) -> bool:
        return any(LOSSES[name].uses_zeta for name in self if name is not None)


def parse_loss(text: str) -> Combination:
    """Parses the name of a loss, or BASE+COMPARISON such as `bce+sibling`.

    BASE is a loss of trajectories, and COMPARISON a loss of questions. Raises PQMError for anything else.
    """
    loss, plus, compare = text.partition("+")
    if not plus and loss in LOSSES:
        return Combination(loss)
    bases, comparisons = ([name for name in LOSSES if LOSSES[name].unit == u] for u in ("trajectory", "question"))
    if loss in bases and compare in comparisons:
        return Combination(loss, compare)
    raise PQMError(
        f"losses {text}: choose a loss ({', '.join(LOSSES)}), or join one of {', '.join(bases)} with one of "
        f"{', '.join(comparisons)}, as bce+sibling"
    )
