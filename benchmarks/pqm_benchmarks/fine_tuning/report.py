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
        against = cell["against"] or {}
        differences = [markdown.difference(against.get(name)) for name in FIGURES]
        rows.append([KINDS[cell["kind"]], cell["loss"], str(cell["seeds"]), *values, *differences])
    for control in results["controls"]:
        values = [markdown.interval(control["figures"][name]) for name in FIGURES]
        rows.append(["-", control["name"], "-", *values, *["-"] * len(FIGURES)])
    head = ["trained", "loss", "seeds", *FIGURES.values(), *(f"{name}, minus {first}" for name in FIGURES.values())]
    return markdown.table(head, rows)
