"""Calibration and AUROC by position against scikit-learn."""

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import auroc_by_position, calibration


def steps(seed, trajectories=80, longest=30):
    rng = np.random.default_rng(seed)
    scores, labels = [], []
    for _ in range(trajectories):
        length = int(rng.integers(0, longest + 1))
        y = (rng.random(length) < 0.7).astype(float)
        q = np.round(rng.normal(0.5, 2, length) + y, 1)
        scores.append([None if rng.random() < 0.1 else float(x) for x in q])
        labels.append([None if rng.random() < 0.1 else float(x) for x in y])
    return scores, labels


def lengths_of(scores):
    rng = np.random.default_rng(7)
    return [rng.integers(1, 40, len(qs)).tolist() for qs in scores]


def flat(scores, labels):
    rows = [
        (q, y, t, n)
        for qs, ys, ns in zip(scores, labels, lengths_of(scores), strict=True)
        for t, (q, y, n) in enumerate(zip(qs, ys, ns, strict=True), 1)
        if None not in (q, y)
    ]
    return (np.array(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_calibration_against_sklearn(seed):
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss

    scores, labels = steps(seed)
    q, y, *_ = flat(scores, labels)
    p = 1 / (1 + np.exp(-q))
    found = calibration(scores, labels)
    correct, predicted = calibration_curve(y, p, n_bins=10, strategy="uniform")
    assert [own["correct"] for own in found["bins"]] == pytest.approx(correct.tolist())
    assert [own["predicted"] for own in found["bins"]] == pytest.approx(predicted.tolist())
    assert found["brier"] == pytest.approx(brier_score_loss(y, p))
    counts = np.array([own["steps"] for own in found["bins"]])
    assert counts.sum() == len(q)
    assert found["error"] == pytest.approx((counts * abs(correct - predicted)).sum() / len(q))


def test_calibration_of_a_model_that_knows_its_odds():
    rng = np.random.default_rng(0)
    q = rng.normal(0, 2, 100_000)
    y = (rng.random(q.size) < 1 / (1 + np.exp(-q))).astype(float)
    assert calibration([q.tolist()], [y.tolist()])["error"] < 0.01


def test_calibration_at_the_edges():
    found = calibration([[1e4, -1e4, 0.0]], [[1.0, 0.0, 0.5]])
    assert [(own["low"], own["steps"], own["correct"]) for own in found["bins"]] == [
        (0, 1, 0),
        (0.4, 1, 0.5),
        (0.9, 1, 1),
    ]
    assert (found["error"], found["brier"]) == (0.0, 0.0)
    assert calibration([], []) == calibration([[None]], [[1.0]]) == {"bins": [], "error": None, "brier": None}


@pytest.mark.parametrize("seed", range(3))
def test_auroc_by_position_against_sklearn(seed):
    from sklearn.metrics import roc_auc_score

    scores, labels = steps(seed)
    q, y, position, length = flat(scores, labels)
    found = auroc_by_position(scores, labels, lengths_of(scores))
    assert [(row["first"], row["last"]) for row in found["rows"]] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 30)]
    for row in [*found["rows"], found["all"]]:
        own = (position >= row["first"]) & (position <= row["last"])
        assert (row["correct"], row["wrong"]) == ((y[own] == 1).sum(), (y[own] == 0).sum())
        assert row["auroc"] == pytest.approx(roc_auc_score(y[own], q[own]))
        assert row["position_only"] == pytest.approx(roc_auc_score(y[own], -position[own]))
        assert row["length_only"] == pytest.approx(roc_auc_score(y[own], -length[own]))
    for name, control in (("same_position", position), ("same_length", length)):
        pairs = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a, ya, ta in zip(q, y, control, strict=True)
            for b, yb, tb in zip(q, y, control, strict=True)
            if ta == tb and ya == 1 and yb == 0
        ]
        assert found[name] == pytest.approx(np.mean(pairs))


def test_a_score_that_knows_the_position_alone():
    """Later steps are wrong more often: it looks good over all steps, and is worth nothing at each."""
    rng = np.random.default_rng(0)
    scores = [[-float(t) for t in range(16)] for _ in range(300)]
    labels = [[float(rng.random() < 0.95 - 0.05 * t) for t in range(16)] for _ in range(300)]
    found = auroc_by_position(scores, labels)
    assert found["all"]["auroc"] == found["all"]["position_only"] > 0.65
    assert found["same_position"] == 0.5
    assert [row["auroc"] for row in found["rows"][:2]] == [0.5, 0.5]


def test_a_score_that_knows_the_length_alone():
    """Shorter steps are right more often: it looks good over all steps, and is worth nothing among equally long ones.
    A score that reads the label, too, is not taken down by the control."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 60, (300, 8))
    labels = (rng.random(lengths.shape) < 1.1 - lengths / 100).astype(float)
    knows = -lengths + 100 * labels
    shorter, both = (auroc_by_position(q.tolist(), labels.tolist(), lengths.tolist()) for q in (-lengths, knows))
    assert shorter["all"]["auroc"] == shorter["all"]["length_only"] > 0.65
    assert shorter["same_length"] == 0.5
    assert shorter["all"]["position_only"] == pytest.approx(0.5, abs=0.03)
    assert both["same_length"] == both["all"]["auroc"] == 1.0
    assert both["all"]["length_only"] == shorter["all"]["length_only"]


def test_undefined_figures_are_none():
    found = auroc_by_position([[1.0], []], [[1.0], []], [[9], []])
    of_all = {"first": 1, "last": 1, "correct": 1, "wrong": 0, "auroc": None, "position_only": None}
    assert found["all"] == of_all | {"length_only": None}
    assert found["same_position"] is found["same_length"] is None
    without = auroc_by_position([[1.0, 0.0]], [[1.0, 0.0]])
    assert (without["all"]["position_only"], without["all"]["length_only"], without["same_length"]) == (1.0, None, None)
    empty = auroc_by_position([], [])
    assert (empty["rows"], empty["all"]["auroc"], empty["same_position"]) == ([], None, None)


@pytest.mark.parametrize("figure", [calibration, auroc_by_position])
def test_bad_input(figure):
    with pytest.raises(PQMError, match="1 scores but 2 labels"):
        figure([[1.0]], [[1.0, 0.0]])
    with pytest.raises(PQMError, match="NaN"):
        figure([[float("nan")]], [[1.0]])
