"""How the page writes things that several of its parts show."""


def bin_text(first: int, last: int) -> str:
    """Positions of steps, from 1."""
    return str(first) if first == last else f"{first}–{last}"
