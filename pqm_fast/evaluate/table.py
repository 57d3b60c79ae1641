"""Writes the results of an evaluation as aligned plain text."""

from typing import Any

from pqm_fast.evaluate.best_of_n import something_to_choose
from pqm_fast.evaluate.probabilities import EQUAL_BINS
from pqm_fast.evaluate.step_curves import BINS
from pqm_fast.evaluate.step_thresholds import calibrated


def table(summary: dict[str, Any]) -> str:
    """The result of `evaluate_steps` or `evaluate_pools` (or both in one dict) as aligned plain text."""
    sections = (_steps, _types, _positions, _by_position, _calibration, _processbench, _pools, _probabilities)
    parts = [section(summary) for section in sections]
    if summary.get("left_out"):
        parts.append("Left out\n" + "\n".join(f"  {reason}" for reason in summary["left_out"]))
    return "\n\n".join(part for part in parts if part)


def _steps(summary: dict[str, Any]) -> str:
    if "steps" not in summary:
        return ""
    figures = summary["steps"]
    calibrated_names = [name for name in figures if calibrated(name) in figures]
    rows = [["", f"threshold {summary['threshold']:g}", "calibrated"]]
    rows += [[_spaced(name), _number(figures[name]), _number(figures[calibrated(name)])] for name in calibrated_names]
    other_names = [
        name for name in figures if name not in calibrated_names and name not in map(calibrated, calibrated_names)
    ]
    rows += [[_spaced(name), _number(figures[name]), ""] for name in other_names]
    note = ""
    if "step_thresholds" in summary:
        note = (
            f"\n  calibrated on: {summary['step_thresholds']['calibrated_on']}; at the threshold that is best there for"
            "\n  the figure, for accuracy on correct and on wrong steps at that of their mean, the balanced accuracy"
        )
    return f"Steps\n{_aligned(rows)}{note}"


TYPE_COLUMNS = {
    "step_accuracy": "step accuracy",
    "balanced_accuracy": "balanced",
    "accuracy_on_correct": "on correct",
    "accuracy_on_wrong": "on wrong",
    "prm_score": "PRMScore",
    "first_error_accuracy": "first error",
}


def _types(summary: dict[str, Any]) -> str:
    if "by_type" not in summary:
        return ""
    field, types = summary["by_type"]["field"], summary["by_type"]["types"]
    rows = [[field, "solutions", "steps", "AUROC", "pairs in order", *TYPE_COLUMNS.values()]]
    for name, figures in types.items():
        pairs = [f"{_number(figures[key])} / {_number(figures[calibrated(key)])}" for key in TYPE_COLUMNS]
        others = (_number(figures[key]) for key in ("trajectories", "steps", "auroc", "pair_accuracy"))
        rows.append([name, *others, *pairs])
    return f"Steps by {field}\n{_aligned(rows)}\n  two figures: at threshold {summary['threshold']:g} / calibrated"


def _positions(summary: dict[str, Any]) -> str:
    if "auroc_by_position" not in summary:
        return ""
    by_position = summary["auroc_by_position"]
    rows = [["step", "correct", "wrong", "AUROC", "position only", "length only"]]
    for entry in [*by_position["rows"], by_position["all"]]:
        steps = "all" if entry is by_position["all"] else _bin(entry)
        figures = (entry[key] for key in ("correct", "wrong", "auroc", "position_only", "length_only"))
        rows.append([steps, *map(_number, figures)])
    for name, column in (("same_position", 0), ("same_length", 1)):
        chance = ["", ""]
        chance[column] = _number(None if by_position[name] is None else 0.5)
        rows.append([_spaced(name), "", "", _number(by_position[name]), *chance])
    notes = (
        "position only: a score that knows nothing but the step's number (earlier is better);",
        "length only: nothing but its number of characters (shorter is better);",
        "same position, same length: pairs of a correct and a wrong step that are equal in it",
    )
    return "\n".join(["AUROC by position", _aligned(rows), *(f"  {note}" for note in notes)])


def _by_position(summary: dict[str, Any]) -> str:
    if "by_position" not in summary:  # older results have none
        return ""
    rows = [["step", "pairs in order", "on correct", "on wrong", "first errors", "found"]]
    found = calibrated("first_error_accuracy")
    keys = ("pair_accuracy", calibrated("accuracy_on_correct"), calibrated("accuracy_on_wrong"), "first_errors", found)
    for entry in summary["by_position"]["rows"]:
        rows.append([_bin(entry), *(_number(entry[key]) for key in keys)])
    no_error = summary["by_position"]["no_error"]
    rows.append(["no error", "", "", "", *(_number(no_error[key]) for key in ("trajectories", found))])
    notes = (
        "pairs in order: of a wrong step at these positions and a correct one anywhere in its solution;",
        "on correct, on wrong, found: calibrated; no error: solutions without a wrong step, and the share in which no",
        "step is called wrong",
    )
    return "\n".join(["Errors by position", _aligned(rows), *(f"  {note}" for note in notes)])


def _bin(entry: dict[str, Any]) -> str:
    return str(entry["first"]) if entry["first"] == entry["last"] else f"{entry['first']}-{entry['last']}"


def _calibration(summary: dict[str, Any]) -> str:
    if not summary.get("calibration", {}).get("bins"):
        return ""
    curve = summary["calibration"]
    rows = [["sigmoid(q)", "steps", "mean", "correct"]]
    for entry in curve["bins"]:
        interval = f"{entry['low']:.1f}-{entry['high']:.1f}"
        rows.append([interval, *map(_number, (entry["steps"], entry["predicted"], entry["correct"]))])
    note = f"  calibration error (ECE, {BINS} bins) {_number(curve['error'])}, Brier score {_number(curve['brier'])}"
    return f"Calibration\n{_aligned(rows)}\n{note}"


PROBABILITY_COLUMNS = {"brier": "Brier score", "log_loss": "log loss", "ece": "ECE"}


def _probabilities(summary: dict[str, Any]) -> str:
    steps, solutions = summary.get("probabilities"), summary.get("solution_probabilities", {})
    entries = ({"step": steps} if steps else {}) | solutions
    if not entries:
        return ""
    rows = [["", "number", "slope", "offset", *PROBABILITY_COLUMNS.values()]]
    for name, entry in entries.items():
        lines = [_range(entry[key]) for key in ("slope", "offset")]
        pairs = [f"{_number(entry['before'][key])} / {_number(entry['after'][key])}" for key in PROBABILITY_COLUMNS]
        rows.append([name, str(entry["count"]), *lines, *pairs])
    notes = [
        "step: that it is correct, sigmoid(q) / sigmoid(slope * q + offset); min, ...: the same of a solution, with its"
        "\n  score by this aggregator in place of q (for prod the logit of the product);",
        f"ECE: calibration error with {EQUAL_BINS} bins of equal mass; the slope and the offset come from:",
    ]
    if steps:
        notes.append(f"steps: {steps['calibrated_on']}")
    if solutions:
        notes.append(f"solutions: {next(iter(solutions.values()))['calibrated_on']}")
    return "\n".join(["Probabilities before / after Platt scaling", _aligned(rows), *(f"  {note}" for note in notes)])


def _range(values: list[float]) -> str:
    return " to ".join(dict.fromkeys((f"{min(values):.3g}", f"{max(values):.3g}")))


def _processbench(summary: dict[str, Any]) -> str:
    if "processbench" not in summary:
        return ""
    rows = [["threshold", "on erroneous", "on correct", "F1", "95% interval", "erroneous", "correct"]]
    for key in ("processbench", "processbench_calibrated"):
        if key in summary:
            entry = summary[key]
            thresholds = entry.get("thresholds") or [entry["threshold"]]
            ends = dict.fromkeys((f"{min(thresholds):.3f}", f"{max(thresholds):.3f}"))
            label = ("calibrated, " if "thresholds" in entry else "fixed, ") + " to ".join(ends)
            figures = [entry["accuracy_on_erroneous"], entry["accuracy_on_correct"], entry["f1"]]
            interval = "-" if entry["f1_low"] is None else f"{entry['f1_low']:.3f} to {entry['f1_high']:.3f}"
            rows.append([label, *map(_number, figures), interval, str(entry["erroneous"]), str(entry["correct"])])
    note = ""
    if "processbench_calibrated" in summary:
        note = f"\n  calibrated on: {summary['processbench_calibrated']['calibrated_on']}"
    return f"ProcessBench\n{_aligned(rows)}{note}"


def _pools(summary: dict[str, Any]) -> str:
    if "overall" not in summary:
        return ""
    entries = [*summary["policies"].items(), ("all candidates", summary["overall"])]
    if not something_to_choose(summary["overall"]):
        rows = [["policy", "solutions", "mean"]]
        rows += [[name, str(entry["candidates"]), _figure(entry["mean_accuracy"])] for name, entry in entries]
        return f"Accuracy, +- 95% interval over questions; there is nothing to choose among\n{_aligned(rows)}"
    ns = sorted({n for _, entry in entries for n in entry["pass_at_n"]}, key=int)
    majority = f"majority ({summary['overall']['majority_vote']['ties']})"
    head = ["policy", "questions", "candidates", "mean", majority, "votes", "pick"]
    rows = [[*head, *(f"n={n}" for n in ns)]]
    noise = 0.0
    for name, entry in entries:
        counts = [str(entry["questions"]), str(entry["candidates"])]
        vote = entry["majority_vote"]
        head = [name, *counts, _figure(entry["mean_accuracy"])]
        if not something_to_choose(entry):
            rows.append([*head, *[""] * (len(rows[0]) - len(head))])
            continue
        head += [_figure(vote), f"{vote['votes']:.3g}"]
        weighted = {f"vote by {aggregator}": by_n for aggregator, by_n in entry["weighted_vote"].items()}
        picks = {**entry["best_of_n"], "vote": entry["self_consistency"], **weighted, "pass@n": entry["pass_at_n"]}
        for pick, by_n in picks.items():
            rows.append([*head, pick, *(_figure(by_n.get(n)) for n in ns)])
            head = [""] * len(head)
            noise = max([noise, *(figure["sampling_error"] for figure in by_n.values())])
    notes = [
        "majority (how ties are decided): the vote of a question's whole pool; votes: mean number per question",
        f"votes of n: standard error of random subsets at most {noise:.4f}; all else is exact over subsets",
    ]
    if "temperature" in summary:
        notes.append(f"softmin: at temperature {summary['temperature']:g}")
    title = "Best-of-N: expected accuracy over all subsets of n candidates, +- 95% interval over questions"
    return "\n".join([title, _aligned(rows), *(f"  {note}" for note in notes)])


def _spaced(name: str) -> str:
    return name.replace("_", " ")


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
