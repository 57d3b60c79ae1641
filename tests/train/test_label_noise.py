"""The rates of wrong labels: recovered from simulated labels, by iterations that never lower the likelihood."""

import numpy as np
import pytest

from pqm_fast.train.label_noise import HIGHEST, LOWEST, START, estimate_noise


def simulated(count, before, after, soft=False, seed=0):
    """Labels of 1 to 12 steps. The first error is at a step with probability 0.15, at the first with 0.3."""
    rng = np.random.default_rng(seed)
    labels = []
    for steps in rng.integers(1, 13, count):
        hazard = np.where(np.arange(steps) == 0, 0.3, 0.15)
        is_over = np.maximum.accumulate(rng.random(steps) < hazard)
        correct = rng.random(steps) < np.where(is_over, after, 1 - before)
        labels.append((correct * 0.9 + 0.05 if soft else correct).astype(np.float32))
    return labels


def assert_rising(estimate):
    rises = np.diff(estimate.log_likelihoods)
    assert (rises >= -1e-9 * abs(estimate.log_likelihoods[0])).all()
    assert len(estimate.log_likelihoods) < 2000  # it converged


@pytest.mark.parametrize(("before", "after"), [(0.05, 0.2), (0.2, 0.05), (0.25, 0.25), (0.0, 0.0)])
def test_the_rates_are_recovered(before, after):
    """Within four standard errors of the shares of labels, twice as large because the first error is not seen."""
    estimate = estimate_noise(simulated(6000, before, after))
    assert_rising(estimate)
    assert estimate.before == pytest.approx(before, abs=8 * (before / 15_000) ** 0.5 + 2e-4)
    assert estimate.after == pytest.approx(after, abs=8 * (after / 15_000) ** 0.5 + 2e-4)
    if before < 0.25:
        assert estimate.hazards[:4] == pytest.approx([0.3, 0.15, 0.15, 0.15], abs=0.04)


def test_the_likelihood_is_that_of_the_model():
    """Against a sum over all places of the first error, for hard and soft labels."""
    for labels in (simulated(30, 0.2, 0.1), simulated(30, 0.2, 0.1, soft=True)):
        total = 0.0
        for y in labels:
            paths = 0.0
            for place in range(len(y) + 1):
                chance = (1 - START) ** place * (START if place < len(y) else 1.0)
                for t, value in enumerate(y.tolist()):
                    says_correct = 1 - START if t < place else START
                    chance *= value * says_correct + (1 - value) * (1 - says_correct)
                paths += chance
            total += np.log(paths)
        estimate = estimate_noise(labels)
        assert estimate.log_likelihoods[0] == pytest.approx(total, rel=1e-9)
        assert_rising(estimate)


@pytest.mark.parametrize(
    "labels",
    [
        [np.ones(5)] * 20,
        [np.zeros(5)] * 20,
        [np.ones(1)] * 10 + [np.zeros(1)] * 20,
        [np.ones(1)],
        [np.full(4, 0.5)] * 3,
        [np.array([1.0, 0.0] * 200), np.zeros(0)],
    ],
)
def test_labels_that_tell_little(labels):
    estimate = estimate_noise(labels)
    assert_rising(estimate)
    for rate in (estimate.before, estimate.after):
        assert LOWEST <= rate <= HIGHEST
    assert np.isfinite(estimate.hazards).all()


def test_no_labels():
    estimate = estimate_noise([np.zeros(0)])
    assert (estimate.before, estimate.after, estimate.log_likelihoods) == (START, START, ())
