"""The counted operations as text."""

from typing import Any

from pqm_benchmarks.work.flops import PARTS
from pqm_benchmarks.work.row_counts import TILE, WAYS


def table(results: dict[str, Any]) -> str:
    """The workload, then for each model GFLOP per trajectory of each way and part, and the distance from the floor."""
    workload = results["workload"]
    trajectories, rows_of_way = workload["trajectories"], workload["layouts"]
    lines = [
        f"{results['config']['questions']} questions, {trajectories:,} trajectories, tree ratio "
        f"{workload['tree_ratio']:.3f}; per trajectory:",
        _line("", "tokens", "attention pairs", "last-layer rows"),
    ]
    for way, title in WAYS.items():
        tokens, pairs, rows = (rows_of_way[way][key] / trajectories for key in ("tokens", "pairs", "last_tokens"))
        lines.append(_line(title, f"{tokens:,.1f}", f"{pairs:,.0f}", f"{rows:,.1f}"))
    lines += [
        "",
        f"attention of a layer in tiles of {TILE[0]} queries x {TILE[1]} keys; per trajectory:",
        _line("", "sequences", "pairs", "computed", "times", "keys gathered"),
    ]
    for way, attention in workload["attention"].items():
        sequences, pairs, computed, gathered = (
            attention[key] / trajectories for key in ("sequences", "pairs", "computed_pairs", "gathered")
        )
        cells = f"{sequences:.2f}", f"{pairs:,.0f}", f"{computed:,.0f}", f"{computed / pairs:.2f}", f"{gathered:,.1f}"
        lines.append(_line(WAYS[way], *cells))
    for model, shape in results["shapes"].items():
        total = shape["flops_per_trajectory"]
        lines += ["", f"{model}: GFLOP per trajectory, forward + backward", _line("", *PARTS, "total", "times less")]
        for way, title in WAYS.items():
            parts = [shape["parts"][way][part] for part in PARTS]
            figures = [f"{flops / 1e9:,.1f}" for flops in (*parts, total[way])]
            lines.append(_line(title, *figures, f"{total['reference'] / total[way]:.2f}"))
        lines.append(
            f"floor: 6 x {shape['non_embedding'] / 1e9:.3f}e9 parameters x "
            f"{rows_of_way['tree']['tokens'] / trajectories:,.1f} tokens = {shape['floor'] / 1e9:,.1f}; "
            f"tree + step rows is {total['tree_step_rows'] / shape['floor']:.3f} of it"
        )
        lines.append(f"keys and values gathered in trees: {shape['gathered_bytes_per_trajectory'] / 1e6:,.1f} MB")
    return "\n".join(lines)


def _line(title: str, *cells: str) -> str:
    return f"{title:16}" + "".join(f"{cell:>17}" for cell in cells)
