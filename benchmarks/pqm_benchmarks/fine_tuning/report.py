"""The comparison of fine-tunings as a Markdown table, for the terminal and for docs/evidence/probes.md."""

from typing import Any

from pqm_fast.study import markdown

FIGURES = {"auroc": "AUROC", "pair_accuracy": "pairs in order"}
KINDS = {"full": "all weights", "lora": "LoRA, rank 16"}


def table(results: dict[str, Any]) -> str:
    """A row for each kind and loss, with its differences from the first loss, and a row for each control."""
    first = results["config"]["losses"][0]
    rows = []
    for cell in results["cells"]:
        values = [markdown.interval(cell["figures"][name]) for name in FIGURES]
        differences = ["-"] * len(FIGURES)
        if against := cell["against"]:
            # the first loss may lack seeds
            at = "" if against["seeds"] == cell["seeds"] else f", seeds {_names(against['seeds'])}"
            differences = [markdown.difference(against["figures"][name]) + at for name in FIGURES]
        rows.append([KINDS[cell["kind"]], cell["loss"], _names(cell["seeds"]), *values, *differences])
    for control in results["controls"]:
        values = [markdown.interval(control["figures"][name]) for name in FIGURES]
        rows.append(["-", control["name"], "-", *values, *["-"] * len(FIGURES)])
    head = ["trained", "loss", "seeds", *FIGURES.values(), *(f"{name}, minus {first}" for name in FIGURES.values())]
    return markdown.table(head, rows)


def _names(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
