"""Makes the charts of a page, as data for charts.js."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import isfinite
from statistics import mean
from typing import Any

from pqm_kernels.losses import LOSSES

from pqm_fast.evaluate.best_of_n import something_to_choose
from pqm_fast.probe.best import best_by_layer
from pqm_fast.report.figures import HELD_OUT
from pqm_fast.report.groups import Group
from pqm_fast.report.probe import select_of, setting_text
from pqm_fast.report.runs import Run
from pqm_fast.report.text import bin_text

Chart = dict[str, Any]
Point = list[float]
HAVE_FLOOR = tuple(name for name, loss in LOSSES.items() if loss.has_flat_floor)
COLOURS = 8  # of page.css; further lines are dashed
POINTS = 500  # the most points in a curve; a longer log is averaged
LEAST_SMOOTHED = 20  # points of a curve, below which it is not smoothed


def training_charts(runs: Sequence[Run]) -> list[Chart]:
    """Loss, accuracies, gradient norm, learning rate and speed by optimizer step."""

    def lines(kind: str, key: str, label: str, **style: Any) -> Iterator[dict[str, Any]]:
        for i, run in enumerate(runs):
            if key == "flat_floor" and run.options.get("loss", "rank") not in HAVE_FLOOR:
                continue
            rows = [row for row in run.metrics if row["kind"] == kind]
            points = [[row["step"], row[key]] for row in rows if _is_number(row.get(key))]
            yield _series(i, label, _averaged(points) if kind == "train" else points, **style)

    def smooth(key: str) -> Iterator[dict[str, Any]]:
        """The smoothed curves, each in front of its raw one; a curve with few points is not smoothed."""
        for series in lines("train", key, "training"):
            if len(series["points"]) >= LEAST_SMOOTHED:
                yield series | {"raw": True}
                series["points"] = _smoothed(series["points"])
            yield series | {"faint": True}

    faint, dots = {"faint": True}, {"dots": True}
    return _drawn(
        _chart(
            "Loss",
            *smooth("loss"),
            *lines("eval", "loss", "held out", **dots),
            *lines("train", "flat_floor", "floor: correct steps all scored alike", dash="2 3", **faint),
        ),
        _chart("Pairs in order", *smooth("pair_accuracy"), *lines("eval", "pair_accuracy", "held out", **dots)),
        _chart("Step AUROC, held out", *lines("eval", "auroc", "held out", **dots)),
        _chart(
            "Step accuracy",
            *smooth("step_accuracy"),
            *lines("eval", "step_accuracy", "held out, threshold 0", **dots),
            *lines("eval", "step_accuracy_calibrated", "held out, calibrated", dash="6 3", **dots),
        ),
        _chart("Gradient norm", *smooth("grad_norm"), y={"log": True}),
        _chart("Learning rate", *lines("train", "learning_rate", "training"), y={"zero": True}),
        _chart("Tokens a second", *smooth("tokens_per_second"), y={"zero": True}),
    )


def best_of_n_charts(group: Group, colour_by_aggregator: bool) -> list[Chart]:
    """Expected accuracy by N: a chart for all candidates, then one per policy, those with most questions first.

    A series that depends on an aggregator has it as `choice`: the page shows the series of one aggregator, or those of
    all without the ones with `detail`.
    """
    pooled = {i: result for i, result in group.by_run.items() if "overall" in result}
    panels = [("all candidates", {i: result["overall"] for i, result in pooled.items()})]
    policies = {name: entry["questions"] for result in pooled.values() for name, entry in result["policies"].items()}
    for name in sorted(policies, key=lambda name: -policies[name]):
        panels.append((name, {i: r["policies"][name] for i, r in pooled.items() if name in r["policies"]}))
    if len(policies) == 1:  # its chart is that of all candidates
        panels = panels[1:]
    chosen = [
        (title, {i: entry for i, entry in entries.items() if something_to_choose(entry)}) for title, entries in panels
    ]
    charts = _drawn(*(_pool_chart(title, entries, colour_by_aggregator) for title, entries in chosen if entries))
    for chart in charts:
        chart["y"] = {"shared": True}
    return charts


def _pool_chart(title: str, entries: dict[int, dict[str, Any]], colour_by_aggregator: bool) -> Chart:
    series = []
    drawn: list[Any] = []
    for i, entry in entries.items():
        for number, (aggregator, figures) in enumerate(entry["best_of_n"].items()):
            style = {"choice": aggregator, "dots": True} | ({"colour": number} if colour_by_aggregator else {})
            series.append(_series(i, f"best by {aggregator}", _by_n(figures), _band(figures), **style))
            dashed = style | {"dash": "6 3", "dots": False, "detail": True}
            series.append(_series(i, f"vote by {aggregator}", _by_n(entry["weighted_vote"][aggregator]), **dashed))
        # these do not depend on the model: one line for all runs with the same candidates
        for name, key, dash in (("vote", "self_consistency", "6 3"), ("pass@N", "pass_at_n", "2 3")):
            points = _by_n(entry[key])
            if (name, points) not in drawn:
                drawn.append((name, points))
                series.append(_series(None, name, points, dash=dash))
    questions = next(iter(entries.values()))["questions"]
    return _chart(f"{title} ({questions} questions)", *series, x={"label": "N", "log2": True})


def step_charts(group: Group) -> list[Chart]:
    """Calibration, and AUROC by the step's position."""
    calibration, positions = [], []
    ticks: dict[float, str] = {}
    drawn: list[Any] = []
    for i, result in group.by_run.items():
        bins = result.get("calibration", {}).get("bins", [])
        points = [[row["predicted"], row["correct"]] for row in bins]
        calibration.append(
            _series(i, "share of correct steps", points, notes=[f"{row['steps']:,} steps" for row in bins], dots=True)
        )
        scaled = result.get("probabilities", {}).get("bins", [])  # older results have none
        scaled_points = [[row["predicted"], row["correct"]] for row in scaled]
        calibration.append(_series(i, "after Platt scaling", scaled_points, dash="6 3", dots=True))
        rows = [row for row in result.get("auroc_by_position", {}).get("rows", []) if row["auroc"] is not None]
        for row in rows:
            ticks[row["first"]] = bin_text(row["first"], row["last"])
        notes = [f"{row['correct']:,} correct, {row['wrong']:,} wrong" for row in rows]
        positions.append(_series(i, "model", [[row["first"], row["auroc"]] for row in rows], notes=notes, dots=True))
        for name, dash in (("position", "6 3"), ("length", "2 3")):
            key = f"{name}_only"  # older results have no `length_only`
            control = [[row["first"], row[key]] for row in rows if row.get(key) is not None]
            if control and (name, control) not in drawn:
                drawn.append((name, control))
                positions.append(_series(None, f"knows the {name} alone", control, dash=dash))
    if any(series["points"] for series in calibration):
        calibration.append(_series(None, "calibrated", [[0, 0], [1, 1]], dash="2 3"))
    return _drawn(
        _chart("Calibration", *calibration, x={"label": "sigmoid(q)", "range": [0, 1]}, y={"range": [0, 1]}),
        _chart("AUROC by position", *positions, x={"label": "step", "log2": True, "ticks": sorted(ticks.items())}),
    )


def layer_charts(runs: Sequence[Run]) -> list[Chart]:
    """Of each probe, the figure that its heads are chosen by, as a line for each loss: at each layer the mean over the
    seeds of the setting that is best there. The bands go from the lowest seed to the highest."""
    probes = {i: best_by_layer(run.heads, select_of(run)) for i, run in enumerate(runs) if run.heads}
    losses = list(dict.fromkeys(loss for best in probes.values() for loss in best))
    charts = []
    for i, best in probes.items():
        select = select_of(runs[i])
        lines = []
        for loss, by_layer in best.items():
            values = {layer: setting.values(select) for layer, setting in by_layer.items()}
            means = [[layer, mean(own)] for layer, own in values.items()]
            band = [[layer, min(own), max(own)] for layer, own in values.items() if len(own) > 1]
            number, notes = losses.index(loss), [setting_text(setting) for setting in by_layer.values()]
            dash = {"dash": "6 3"} if number >= COLOURS else {}
            lines.append(_series(i, loss, means, band, dots=True, colour=number, notes=notes, **dash))
        heading, _ = HELD_OUT.get(select, (select, None))
        name = f": {runs[i].name}" if len(probes) > 1 else ""
        title = f"{heading[0].upper()}{heading[1:]}, held out, by layer{name}"
        ticks = [[layer, str(layer)] for layer in sorted({head["layer"] for head in runs[i].heads})]
        charts.append(_chart(title, *lines, x={"label": "layer", "ticks": ticks}))
    return _drawn(*charts)


def _chart(
    title: str, *series: dict[str, Any], x: dict[str, Any] | None = None, y: dict[str, Any] | None = None
) -> Chart:
    return {"title": title, "series": list(series), "x": x or {"label": "optimizer step"}, "y": y or {}}


def _series(
    run: int | None, label: str, points: list[Point], band: list[Point] | None = None, **style: Any
) -> dict[str, Any]:
    """`run`: its index; None for a series that belongs to no run. `band`: [x, low, high] each."""
    return {"run": run, "label": label, "points": points, **({"band": band} if band else {}), **style}


def _drawn(*charts: Chart) -> list[Chart]:
    """Leaves out empty series, and then the charts that have no series left."""
    for chart in charts:
        chart["series"] = [series for series in chart["series"] if series["points"]]
    return [chart for chart in charts if chart["series"]]


def _averaged(points: list[Point]) -> list[Point]:
    """At most `POINTS` points: each is the mean of several neighbours, at the step of the last one."""
    size = -(-len(points) // POINTS) if points else 1
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [[chunk[-1][0], sum(y for _, y in chunk) / len(chunk)] for chunk in chunks]


def _smoothed(points: list[Point]) -> list[Point]:
    """Each point becomes the mean of the tenth of all points that is centred on it, so that the curve does not lag."""
    total, half_width = list(accumulate((y for _, y in points), initial=0.0)), len(points) // 20
    smoothed = []
    for i, (x, _) in enumerate(points):
        start, end = max(i - half_width, 0), min(i + half_width + 1, len(points))
        smoothed.append([x, (total[end] - total[start]) / (end - start)])
    return smoothed


def _by_n(figures: dict[str, Any]) -> list[Point]:
    return [[int(n), figure["mean"]] for n, figure in figures.items()]


def _band(figures: dict[str, Any]) -> list[Point]:
    return [[int(n), f["low"], f["high"]] for n, f in figures.items() if f.get("low") is not None]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and isfinite(value)
