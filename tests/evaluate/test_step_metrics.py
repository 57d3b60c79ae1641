"""Step metrics against scikit-learn and plain loops over the definitions."""

import math

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import flat_floor, step_metrics


def by_loops(scores, labels, threshold):
    steps, wins, pairs, first = [], 0.0, 0, []
    for qs, ys in zip(scores, labels, strict=True):
        seen = [(q, y >= 0.5) for q, y in zip(qs, ys, strict=True) if q is not None and y is not None]
        steps += seen
        for q, y in seen:
            for other, z in seen:
                if y and not z:
                    pairs += 1
                    wins += 1.0 if q > other else 0.5 if q == other else 0.0
        wrong = [t for t, y in enumerate(ys) if y is not None and y < 0.5]
        predicted = [t for t in range(len(ys)) if None not in (qs[t], ys[t]) and qs[t] < threshold]
        if seen:
            first.append(wrong[:1] == predicted[:1])
    right, bad = [q for q, y in steps if y], [q for q, y in steps if not y]
    return {
        "step_accuracy": np.mean([(q >= threshold) == y for q, y in steps]),
        "balanced_accuracy": (np.mean([q >= threshold for q in right]) + np.mean([q < threshold for q in bad])) / 2,
        "accuracy_on_correct": np.mean([q >= threshold for q in right]),
        "accuracy_on_wrong": np.mean([q < threshold for q in bad]),
        "pair_accuracy": wins / pairs,
        "first_error_accuracy": np.mean(first),
        "mean_gap": np.mean(right) - np.mean(bad),
        "trajectories": len(first),
        "steps": len(steps),
        "share_correct": len(right) / len(steps),
    }


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("levels", [2, 5, 10_000], ids=["many ties", "some ties", "no ties"])
def test_against_loops_and_sklearn(levels, threshold):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(levels)
    scores, labels = [], []
    for _ in range(60):
        length = int(rng.integers(0, 12))
        ys = rng.choice([0.0, 0.3, 0.5, 1.0, None], length).tolist()
        qs = ((rng.integers(0, levels, length) - levels // 2) * 6 / levels).tolist()
        scores.append([None if rng.random() < 0.1 else q for q in qs])
        labels.append(ys)
    found = step_metrics(scores, labels, threshold)
    flat = [
        (q, y >= 0.5)
        for qs, ys in zip(scores, labels, strict=True)
        for q, y in zip(qs, ys, strict=True)
        if None not in (q, y)
    ]
    expected = by_loops(scores, labels, threshold)
    expected["auroc"] = roc_auc_score([y for _, y in flat], [q for q, _ in flat])
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-12)


def test_pairs_are_within_a_trajectory():
    scores, labels = [[5.0, 4.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]
    found = step_metrics(scores, labels)
    assert found["pair_accuracy"] == 1.0
    assert found["auroc"] == 0.75


@pytest.mark.parametrize(
    ("q", "y", "hit"),
    [
        ([1.0, -1.0, -1.0], [1, 0, 0], 1),
        ([1.0, 0.0], [1, 1], 1),  # q == threshold is predicted correct
        ([-1.0, -1.0], [1, 0], 0),
        ([1.0, 1.0], [1, 0], 0),
        ([1.0, -1.0], [1, 1], 0),
        ([1.0, None], [1, 0], 0),  # the first error was cut off: missed, not absent
        ([1.0, -1.0, -1.0], [1, None, 0], 1),  # an unlabelled step predicts nothing
        ([-1.0], [1], 0),
    ],
)
def test_first_error(q, y, hit):
    assert step_metrics([q], [y])["first_error_accuracy"] == hit


def test_undefined_figures_are_none():
    only_correct = step_metrics([[1.0, -1.0]], [[1.0, 1.0]])
    assert only_correct["accuracy_on_correct"] == 0.5
    for name in ("auroc", "pair_accuracy", "mean_gap", "accuracy_on_wrong", "balanced_accuracy"):
        assert only_correct[name] is None
    for nothing in ([], [[]], [[None]]):
        empty = step_metrics(nothing, [[1.0] * len(row) for row in nothing])
        assert (empty["steps"], empty["trajectories"], empty["step_accuracy"], empty["auroc"]) == (
            0,
            0,
            None,
            None,
        )


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[1.0], [2.0]], [[1.0]], "2 trajectories of scores but 1"),
        ([[1.0], [2.0, 3.0]], [[1.0], [1.0]], "trajectory 1 has 2 scores but 1 labels"),
        ([[float("nan")]], [[1.0]], "NaN"),
        ([[None, float("nan")]], [[1.0, None]], "NaN"),
    ],
)
def test_bad_input(scores, labels, message):
    with pytest.raises(PQMError, match=message):
        step_metrics(scores, labels)


def test_a_hundred_thousand_steps():
    """In n log n: the 1.6 billion pairs of a correct and a wrong step would take long and much memory."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(10_000, 10)).tolist()
    labels = (rng.random((10_000, 10)) < 0.8).astype(float).tolist()
    found = step_metrics(scores, labels)
    assert found["auroc"] == pytest.approx(0.5, abs=0.01)
    assert found["pair_accuracy"] == pytest.approx(0.5, abs=0.01)


def rank_loss(q, correct, zeta):
    """Eq. 10 of the paper, term by term."""
    c, w = ([x for x, y in zip(q, correct, strict=True) if y == side] for side in (1, 0))
    n = sum(math.exp(x + zeta) for x in w)
    terms = [math.log(1 + sum(map(math.exp, c[: i + 1])) + n) - c[i] for i in range(len(c))]
    terms += [math.log(1 + n)] if w else []
    return sum(terms) / len(terms)


def test_flat_floor_is_where_the_rank_loss_sits():
    labels = [[1, 1, 1, 1, 1], [1, 1, 0, 0], [0, 0], [1] * 20]
    high = [[40.0 if y else -60.0 for y in ys] for ys in labels]
    losses = [rank_loss(q, ys, 4.0) for q, ys in zip(high, labels, strict=True)]
    assert flat_floor(labels) == pytest.approx(sum(losses) / 4, abs=1e-9)
    # the three figures quoted in the documentation
    assert [round(flat_floor([[1] * c]), 2) for c in (5, 10, 20)] == [0.96, 1.51, 2.12]
    assert flat_floor([]) == flat_floor([[]]) == flat_floor([[None]]) == 0.0
    assert flat_floor([[1, 1, None], []]) == pytest.approx(math.log(2) / 2 / 2)
    assert flat_floor([[0.7, 0.5, 0.4]]) == flat_floor([[1, 1, 0]]) == pytest.approx(math.log(2) / 3)
