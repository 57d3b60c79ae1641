"""PRMBench's figures against scikit-learn."""

import numpy as np
import pytest

from pqm_fast.evaluate import by_type, calibrated_metrics, cross_thresholds, prm_score, step_metrics


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_prm_score_against_sklearn(threshold):
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    q, y = rng.normal(0.5, 1, (20, 8)), (rng.random((20, 8)) < 0.8).astype(float)
    found = prm_score(q.tolist(), y.tolist(), threshold)
    one = f1_score(y.ravel(), q.ravel() >= threshold)
    two = f1_score(1 - y.ravel(), q.ravel() < threshold)
    assert found == {
        "f1_correct": pytest.approx(one),
        "f1_wrong": pytest.approx(two),
        "prm_score": pytest.approx((one + two) / 2),
    }


def test_closed_form():
    # 3 correct steps of which 2 are found, 1 wrong step that is found: F1 2*2/(2+3) and 2*1/(2+1)
    assert prm_score([[1.0, 1.0, -1.0, -1.0]], [[1, 1, 1, 0]])["prm_score"] == pytest.approx((4 / 5 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("q", "y", "expected"),
    [
        ([1.0], [1.0], (1.0, None, None)),
        ([1.0], [0.0], (None, 0.0, None)),
        ([None], [1.0], (None, None, None)),
        ([], [], (None, None, None)),
        ([1.0, 1.0], [0.0, 1.0], (2 / 3, 0.0, 1 / 3)),
    ],
)
def test_undefined_without_a_step_of_the_class(q, y, expected):
    found = prm_score([q], [y])
    assert tuple(found.values()) == tuple(x if x is None else pytest.approx(x) for x in expected)


def test_types_are_taken_apart():
    rng = np.random.default_rng(0)
    q = rng.normal(0.5, 1, (30, 5)).tolist()
    y = (rng.random((30, 5)) < 0.7).astype(float).tolist()
    types = [["none", "deception", "confidence"][i % 3] for i in range(30)]
    found = by_type(q, y, types, 0.3)
    assert list(found) == ["confidence", "deception", "none"]
    thresholds = cross_thresholds(q, y, [f"question {i}" for i in range(30)])
    chosen = by_type(q, y, types, 0.3, thresholds)
    for k, name in enumerate(["none", "deception", "confidence"]):
        own, labels = q[k::3], y[k::3]
        fixed = step_metrics(own, labels, 0.3) | prm_score(own, labels, 0.3)
        nothing = calibrated_metrics(own, labels, None) | {"prm_score_calibrated": None}
        assert found[name] == fixed | nothing
        at = prm_score(own, labels, thresholds.each("prm_score")[k::3])["prm_score"]
        calibrated = calibrated_metrics(own, labels, thresholds.of(range(k, 30, 3))) | {"prm_score_calibrated": at}
        assert chosen[name] == fixed | calibrated
        assert None not in calibrated.values()
    assert by_type([], [], []) == {}
