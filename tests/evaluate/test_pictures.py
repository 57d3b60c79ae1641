"""The pictures hold every curve, inside the frame."""

import numpy as np
import pytest

from pqm_fast.data.records import Record
from pqm_fast.evaluate import evaluate_pools, evaluate_steps
from pqm_fast.evaluate import pictures as module
from pqm_fast.evaluate.pictures import draw


def pools(policies, candidates=8, questions=6):
    rng = np.random.default_rng(0)
    return [
        (
            Record(f"{q}/{p}/{k}", "Q?", ["s"], extra={"question_id": f"q{q}", "policy": p, "correct": bool(q % 2)}),
            [float(rng.normal())],
        )
        for q in range(questions)
        for p in policies
        for k in range(candidates)
    ]


def steps():
    rng = np.random.default_rng(0)
    labels = [[float(rng.random() < 0.7) for _ in range(9)] for _ in range(100)]
    scores = [[float(rng.normal(y)) for y in ys] for ys in labels]
    extra = {"error_type": "deception"}
    return [
        (Record(str(i), f"Q{i}?", ["s" * (i % 3 + 1)] * 9, ys, extra), qs)
        for i, (ys, qs) in enumerate(zip(labels, scores, strict=True))
    ]


def shown(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


@pytest.mark.parametrize(
    ("policies", "titles"),
    [
        ([None], ["all candidates"]),
        ([f"p{i}" for i in range(8)], ["all 8 policies", *(f"p{i}" for i in range(6))]),
    ],
)
def test_one_panel_per_policy(figures, tmp_path, monkeypatch, policies, titles):
    monkeypatch.setattr(module, "PANELS", 7)  # each takes long to draw
    found = evaluate_pools(pools(policies))
    assert draw(found, tmp_path / "r.json") == [tmp_path / "r.best_of_n.png"]
    [figure] = figures
    assert [ax.get_title().split(" (")[0] for ax in shown(figure)] == titles
    for ax in shown(figure):
        curves = {line.get_label(): line.get_xydata() for line in ax.lines}
        assert list(curves) == ["pass@N", *(f"best by {how}" for how in module.COLORS), "vote by min", "vote"]
        assert len(ax.collections) == len(curves)  # a band each
    drawn = {line.get_label(): line.get_xydata() for line in shown(figure)[0].lines}
    best = found["overall"]["best_of_n"]["last"]
    assert drawn["best by last"].tolist() == [[int(n), own["mean"]] for n, own in best.items()]


def test_nothing_is_cut_off(tmp_path):
    """The margin is white: one narrow panel with the longest legend, and one step panel of each kind. The folder is
    made."""
    from PIL import Image

    paths = draw(evaluate_pools(pools(["a"])) | evaluate_steps(steps()), tmp_path / "deep" / "r.json")
    assert len(paths) == 2
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("L"))
        assert len(np.unique(pixels)) > 20, path
        edges = (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:])
        assert all((edge == 255).all() for edge in edges), path


def test_step_panels_hold_the_figures(figures, tmp_path):
    found = evaluate_steps(steps())
    assert draw(found, tmp_path / "r.json") == [tmp_path / "r.steps.png"]
    calibration, positions, types = shown(figures[0])
    reliability = next(line for line in calibration.lines if line.get_label().startswith("model"))
    assert reliability.get_ydata().tolist() == [own["correct"] for own in found["calibration"]["bins"]]
    scaled = next(line for line in calibration.lines if line.get_label() == "after Platt scaling")
    assert scaled.get_ydata().tolist() == [own["correct"] for own in found["probabilities"]["bins"]]
    model, baseline, length, _ = positions.lines
    rows = found["auroc_by_position"]["rows"]
    assert model.get_ydata().tolist() == [row["auroc"] for row in rows]
    assert baseline.get_ydata().tolist() == [row["position_only"] for row in rows]
    assert length.get_ydata().tolist() == [row["length_only"] for row in rows]
    assert types.get_title() == "Accuracy by error type, calibrated"
    assert [bar.get_width() for bar in types.patches] == [
        found["by_type"]["types"]["deception"][f"accuracy_on_{kind}_calibrated"] for kind in ("correct", "wrong")
    ]


def test_a_policy_with_one_candidate_has_no_panel(figures, tmp_path):
    draw(evaluate_pools([*pools(["many"]), *pools(["once"], candidates=1)]), tmp_path / "r.json")
    assert [ax.get_title().split(" (")[0] for ax in shown(figures[0])] == ["all 2 policies", "many"]
    assert draw(evaluate_pools(pools([None], candidates=1)), tmp_path / "r.json") == []


def test_noise_and_nothing_are_not_drawn(figures, tmp_path):
    """Too few steps for an AUROC leave calibration alone; no figures, no picture."""
    few = [(Record("a", "Q?", ["s"] * 2, [1.0, 0.0]), [1.0, -1.0])]
    draw(evaluate_steps(few), tmp_path / "r.json")
    assert [ax.get_title() for ax in shown(figures[0])] == ["Calibration"]
    assert draw({"left_out": []}, tmp_path / "r.json") == []
    assert draw(evaluate_steps([]), tmp_path / "r.json") == []
