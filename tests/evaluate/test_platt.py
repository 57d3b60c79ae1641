"""Platt scaling against its definition in plain Python, and the figures of the probabilities."""

import math

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import cross_scaled, platt_scaling, probability_errors, scaled_from
from pqm_fast.evaluate.calibrate import deal


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def items(seed, count, gap=1.0, soft=False):
    rng = np.random.default_rng(seed)
    y = (rng.random(count) < 0.7).astype(float)
    y[:2] = 0.0, 1.0
    q = np.round(rng.normal(0, 1, count) + gap * y, 1)  # with ties
    return q, np.where(rng.random(count) < 0.3, 0.5 * y + 0.3, y) if soft else y


def derivatives(q, y, slope, offset):
    """Of the negative log-likelihood by slope and offset, relative to the size of their terms."""
    correct = math.fsum(y)
    wrong = len(y) - correct
    targets = [own * (correct + 1) / (correct + 2) + (1 - own) / (wrong + 2) for own in y]
    gaps = [sigmoid(slope * x + offset) - t for x, t in zip(q, targets, strict=True)]
    return (
        math.fsum(gap * x for gap, x in zip(gaps, q, strict=True)) / math.fsum(map(abs, q)),
        math.fsum(gaps) / len(q),
    )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("gap", [0.5, 1.0, 50.0])  # at 50 a threshold separates the classes
@pytest.mark.parametrize("count", [4, 30, 1000])
def test_the_likelihood_is_at_its_highest(count, gap, soft):
    q, y = items(count, count, gap, soft)
    slope, offset = platt_scaling(q, y)
    assert slope > 0
    assert derivatives(q.tolist(), y.tolist(), slope, offset) == pytest.approx((0, 0), abs=1e-12)


def test_targets_are_those_of_platt():
    """One score for each class: the probabilities are his targets, (2 + 1) / (2 + 2) and 1 / (3 + 2)."""
    slope, offset = platt_scaling(np.array([1.0, 1.0, -1.0, -1.0, -1.0]), np.array([1.0, 1.0, 0.0, 0.0, 0.0]))
    assert [sigmoid(slope + offset), sigmoid(-slope + offset)] == pytest.approx([3 / 4, 1 / 5], abs=1e-12)
    slope, offset = platt_scaling(np.array([5.0, 3.0]), np.array([1.0, 0.0]))
    assert [sigmoid(5 * slope + offset), sigmoid(3 * slope + offset)] == pytest.approx([2 / 3, 1 / 3], abs=1e-12)


@pytest.mark.parametrize(("scale", "shift"), [(1e4, 0.0), (1e-4, 0.0), (3.0, -50.0), (1.0, 1e4), (1e200, 0.0)])
def test_scale_and_level_of_the_scores_do_not_matter(scale, shift):
    q, y = items(0, 200)
    slope, offset = platt_scaling(q, y)
    other_slope, other_offset = platt_scaling(scale * q + shift, y)
    assert other_slope * scale == pytest.approx(slope, rel=1e-9)
    assert other_offset + other_slope * shift == pytest.approx(offset, rel=1e-9, abs=1e-9)


def test_scores_far_apart():
    q, y = items(0, 1000)
    far, labels = np.r_[q, 1e4, -1e4], np.r_[y, 1.0, 0.0]
    slope, offset = platt_scaling(far, labels)
    assert slope > 0.5
    assert derivatives(far.tolist(), labels.tolist(), slope, offset) == pytest.approx((0, 0), abs=1e-12)
    assert platt_scaling(far, 1 - labels)[0] == 0.0


@pytest.mark.parametrize(
    ("q", "y"), [([2.0] * 4, [1, 1, 0, 1]), ([0.1] * 4, [1, 1, 0, 1]), ([0, 1, 2, 3], [1, 1, 1, 0])]
)
def test_scores_without_order_have_the_share(q, y):
    """All equal, or higher for wrong items: the slope is 0, and every probability is the mean target."""
    slope, offset = platt_scaling(np.array(q, dtype=float), np.array(y, dtype=float))
    assert slope == 0.0
    assert sigmoid(offset) == pytest.approx((3 * 4 / 5 + 1 / 3) / 4)


@pytest.mark.parametrize("y", [[], [1.0], [1.0, 1.0, 0.6], [0.0, 0.4]])
def test_one_class_has_no_scaling(y):
    assert platt_scaling(np.arange(len(y)) * 1.0, np.array(y)) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_must_be_finite(bad):
    with pytest.raises(PQMError, match=f"scores must be finite, found {bad}"):
        platt_scaling(np.array([0.0, bad]), np.array([0.0, 1.0]))


@pytest.mark.parametrize("count", [1, 3, 15, 16, 44, 400])
def test_errors_are_their_definitions(count):
    rng = np.random.default_rng(count)
    logit, label = rng.permutation(np.linspace(-3, 3, count)), rng.random(count)  # no ties
    p = [sigmoid(x) for x in logit]
    found = probability_errors(logit, label)
    assert found["brier"] == pytest.approx(sum((a - b) ** 2 for a, b in zip(p, label, strict=True)) / count)
    losses = [-b * math.log(a) - (1 - b) * math.log(1 - a) for a, b in zip(p, label, strict=True)]
    assert found["log_loss"] == pytest.approx(sum(losses) / count)
    pairs = sorted(zip(p, label, strict=True))
    num_bins = min(15, count)
    sizes = [count // num_bins + (k < count % num_bins) for k in range(num_bins)]
    ece = 0.0
    for size in sizes:
        own, pairs = pairs[:size], pairs[size:]
        ece += size / count * abs(sum(a for a, _ in own) / size - sum(b for _, b in own) / size)
    assert found["ece"] == pytest.approx(ece)


def test_ties_do_not_depend_on_the_order():
    """Two probabilities: their bins hold the mean label of each, wherever the labels stand."""
    logit, label = np.array([0.0] * 40 + [2.0] * 40), np.array([1.0] * 30 + [0.0] * 10 + [1.0] * 20 + [0.0] * 20)
    order = np.random.default_rng(0).permutation(80)
    for own in (slice(None), slice(None, None, -1), order):
        found = probability_errors(logit[own], label[own])["ece"]
        assert found == pytest.approx((0.25 + abs(sigmoid(2) - 0.5)) / 2)


def test_extreme_scores():
    found = probability_errors(np.array([1e4, -1e4, 1e4]), np.array([1.0, 0.0, 0.0]))
    assert found == pytest.approx({"brier": 1 / 3, "log_loss": 1e4 / 3, "ece": 1 / 3})


def test_each_fold_has_the_line_of_the_others():
    q, y = items(0, 300)
    q = 7 * q - 40  # as a comparative loss may leave it
    folds = deal([f"question {i // 3}" for i in range(300)])
    found = cross_scaled(q, y, folds)
    lines = [platt_scaling(q[folds != fold], y[folds != fold]) for fold in range(5)]
    assert list(zip(found["slope"], found["offset"], strict=True)) == lines
    logit = np.array([lines[fold][0] * x + lines[fold][1] for x, fold in zip(q, folds, strict=True)])
    assert found["after"] == pytest.approx(probability_errors(logit, y))
    assert found["before"] == probability_errors(q, y)
    assert found["count"] == sum(own["steps"] for own in found["bins"]) == 300
    assert found["after"]["ece"] < 0.1 < found["before"]["ece"]
    assert all(found["after"][name] < found["before"][name] for name in ("brier", "log_loss"))
    other_q, other_y = items(1, 100)
    given = scaled_from(q, y, other_q, other_y)
    slope, offset = platt_scaling(other_q, other_y)
    assert (given["slope"], given["offset"]) == ([slope], [offset])
    assert given["after"] == pytest.approx(probability_errors(slope * q + offset, y))
    assert (found["calibrated_on"], given["calibrated_on"]) == (
        "for each fifth of the questions, the other 4",
        "other questions given",
    )


@pytest.mark.parametrize("wrong", [[], [0], range(50)])
def test_too_few_for_the_folds(wrong):
    q, y = np.arange(50.0), np.ones(50)
    y[list(wrong)] = 0.0
    assert cross_scaled(q, y, deal([str(i) for i in range(50)])) is None
    assert (scaled_from(q, y, q, y) is None) == (len(wrong) != 1)
    assert scaled_from(np.zeros(0), np.zeros(0), np.arange(2.0), np.arange(2.0)) is None


def test_pure_noise_gains_nothing():
    """Fitted and measured on the same items, a line would look better than the share alone."""
    rng = np.random.default_rng(0)
    y = np.array([1.0, 0.0] * 20)
    gain = []
    for _ in range(100):
        found = cross_scaled(rng.normal(size=40), y, deal([str(i // 2) for i in range(40)]))
        gain.append(0.25 - found["after"]["brier"])
    assert -0.02 < np.mean(gain) < 0
