"""Selects the cells of results.json that a table or a picture shows."""

from typing import Any

Results = dict[str, Any]
"""The contents of results.json."""
Entry = dict[str, Any]
"""A cell in it (`analyse`)."""


def select(results: Results, **values: Any) -> list[Entry]:
    """The cells with these values. `zeta` is a list; without it, the cells with the main zeta or without a margin."""
    zetas = values.pop("zeta", (None, results["config"]["zeta"]))
    return [
        cell
        for cell in results["cells"]
        if cell["zeta"] in zetas and all(cell[name] == value for name, value in values.items())
    ]


def base(results: Results) -> dict[str, str]:
    """The first model and the first kind of labels: only there all losses and zetas are compared."""
    return {"model": results["config"]["models"][0], "labels": results["config"]["labels"][0]}


def base_title(results: Results) -> str:
    return "{model}, labels {labels}".format(**base(results))


def base_cells(results: Results, **values: Any) -> list[Entry]:
    """The cells of `select` on the first model and labels, without those where every learning rate diverged."""
    return [cell for cell in select(results, **base(results), **values) if "best_of_n" in cell]
