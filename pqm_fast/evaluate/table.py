"""The figures as aligned plain text."""

from typing import Any

from pqm_fast.evaluate.step_curves import BINS


def table(summary: dict[str, Any]) -> str:
    """The result of `evaluate_steps` or `evaluate_pools` (or both in one dict) as aligned plain text."""
    sections = (_steps, _types, _positions, _calibration, _processbench, _pools)
    parts = [section(summary) for section in sections]
    if summary.get("left_out"):
        parts.append("Left out\n" + "\n".join(f"  {reason}" for reason in summary["left_out"]))
    return "\n\n".join(part for part in parts if part)


def _steps(summary: dict[str, Any]) -> str:
    if "steps" not in summary:
        return ""
    return "Steps\n" + _aligned([[name.replace("_", " "), _number(value)] for name, value in summary["steps"].items()])


TYPE_COLUMNS = {
    "trajectories": "solutions",
    "steps": "steps",
    "step_accuracy": "step accuracy",
    "accuracy_on_correct": "on correct",
    "accuracy_on_wrong": "on wrong",
    "prm_score": "PRMScore",
    "first_error_accuracy": "first error",
    "auroc": "AUROC",
}


def _types(summary: dict[str, Any]) -> str:
    if "by_type" not in summary:
        return ""
    rows = [[summary["by_type"]["field"], *TYPE_COLUMNS.values()]]
    rows += [[name, *(_number(own[key]) for key in TYPE_COLUMNS)] for name, own in summary["by_type"]["types"].items()]
    return f"Steps by {summary['by_type']['field']}\n" + _aligned(rows)


def _positions(summary: dict[str, Any]) -> str:
    if "auroc_by_position" not in summary:
        return ""
    found = summary["auroc_by_position"]
    rows = [["step", "correct", "wrong", "AUROC", "position only"]]
    for own in [*found["rows"], found["all"]]:
        place = str(own["first"]) if own["first"] == own["last"] else f"{own['first']}-{own['last']}"
        place = "all" if own is found["all"] else place
        figures = (own["correct"], own["wrong"], own["auroc"], own["position_only"])
        rows.append([place, *map(_number, figures)])
    chance = None if found["same_position"] is None else 0.5
    rows.append(["same step", "", "", _number(found["same_position"]), _number(chance)])
    note = (
        "  position only: a score that knows nothing but the step's number; same step: pairs of steps with one number"
    )
    return f"AUROC by position\n{_aligned(rows)}\n{note}"


def _calibration(summary: dict[str, Any]) -> str:
    if not summary.get("calibration", {}).get("bins"):
        return ""
    found = summary["calibration"]
    rows = [["sigmoid(q)", "steps", "mean", "correct"]]
    for own in found["bins"]:
        where = f"{own['low']:.1f}-{own['high']:.1f}"
        rows.append([where, *map(_number, (own["steps"], own["predicted"], own["correct"]))])
    note = f"  calibration error (ECE, {BINS} bins) {_number(found['error'])}, Brier score {_number(found['brier'])}"
    return f"Calibration\n{_aligned(rows)}\n{note}"


def _processbench(summary: dict[str, Any]) -> str:
    if "processbench" not in summary:
        return ""
    rows = [["threshold", "on erroneous", "on correct", "F1", "95% interval", "erroneous", "correct"]]
    for key in ("processbench", "processbench_calibrated"):
        if key in summary:
            own = summary[key]
            chosen = own.get("thresholds") or [own["threshold"]]
            ends = dict.fromkeys((f"{min(chosen):.3f}", f"{max(chosen):.3f}"))
            label = ("calibrated, " if "thresholds" in own else "fixed, ") + " to ".join(ends)
            figures = [own["accuracy_on_erroneous"], own["accuracy_on_correct"], own["f1"]]
            interval = "-" if own["f1_low"] is None else f"{own['f1_low']:.3f} to {own['f1_high']:.3f}"
            rows.append([label, *map(_number, figures), interval, str(own["erroneous"]), str(own["correct"])])
    note = ""
    if "processbench_calibrated" in summary:
        note = f"\n  calibrated on: {summary['processbench_calibrated']['calibrated_on']}"
    return f"ProcessBench\n{_aligned(rows)}{note}"


def _pools(summary: dict[str, Any]) -> str:
    if "overall" not in summary:
        return ""
    entries = [*summary["policies"].items(), ("all candidates", summary["overall"])]
    ns = sorted({n for _, entry in entries for n in entry["pass_at_n"]}, key=int)
    majority = f"majority ({summary['overall']['majority_vote']['ties']})"
    head = ["policy", "questions", "candidates", "mean", majority, "votes", "pick"]
    rows = [[*head, *(f"n={n}" for n in ns)]]
    noise = 0.0
    for name, entry in entries:
        counts = [str(entry["questions"]), str(entry["candidates"])]
        vote = entry["majority_vote"]
        head = [name, *counts, _figure(entry["mean_accuracy"]), _figure(vote), f"{vote['votes']:.3g}"]
        weighted = {f"vote by {how}": own for how, own in entry["weighted_vote"].items()}
        picks = {**entry["best_of_n"], "vote": entry["self_consistency"], **weighted, "pass@n": entry["pass_at_n"]}
        for how, own in picks.items():
            rows.append([*head, how, *(_figure(own.get(n)) for n in ns)])
            head = [""] * len(head)
            noise = max([noise, *(figure["sampling_error"] for figure in own.values())])
    notes = [
        "majority (how ties are decided): the vote of a question's whole pool; votes: mean number per question",
        f"votes of n: standard error of random subsets at most {noise:.4f}; all else is exact over subsets",
    ]
    title = "Best-of-N: expected accuracy over all subsets of n candidates, +- 95% interval over questions"
    return "\n".join([title, _aligned(rows), *(f"  {note}" for note in notes)])


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _figure(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    # The wider side: near 0 and 1 the interval is not symmetric.
    return f"{mean:.3f}" if high is None else f"{mean:.3f} +-{max(high - mean, mean - low):.3f}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)
