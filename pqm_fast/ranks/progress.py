"""The progress bar of a command: rank 0 shows its own share of the work."""

from tqdm import tqdm

from pqm_fast.ranks.group import Ranks


def progress_bar(ranks: Ranks, total: int, unit: str, shown: bool, initial: int = 0) -> tqdm:
    """A bar of `total` units of which `initial` are done. Of several ranks, that of rank 0 says that it is one's."""
    return tqdm(total=total, initial=initial, unit=unit, desc=share_label(ranks), disable=not (shown and ranks.first))


def share_label(ranks: Ranks) -> str | None:
    return None if ranks.world == 1 else f"rank 0 of {ranks.world}"
