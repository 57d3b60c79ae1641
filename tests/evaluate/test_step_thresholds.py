"""Thresholds of step figures: the best of all, and always from other questions."""

from itertools import pairwise

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import calibrated_metrics, cross_thresholds, prm_score, step_metrics, thresholds_from
from pqm_fast.evaluate.calibrate import deal

FIGURES = ("step_accuracy", "balanced_accuracy", "first_error_accuracy", "prm_score")


def random_steps(seed, trajectories=40, levels=1000):
    rng = np.random.default_rng(seed)
    scores, labels = [], []
    for _ in range(trajectories):
        y = rng.choice([0.0, 1.0, 0.7, None], int(rng.integers(0, 7)), p=[0.2, 0.5, 0.1, 0.2]).tolist()
        q = rng.integers(0, levels, len(y)) / levels * 4 - 3
        scores.append([None if rng.random() < 0.1 else float(x + (v or 0)) for x, v in zip(q, y, strict=True)])
        labels.append(y)
    return scores, labels


def figures_at(scores, labels, threshold):
    return step_metrics(scores, labels, threshold) | prm_score(scores, labels, threshold)


@pytest.mark.parametrize("levels", [2, 7, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_each_figure_is_the_highest_that_a_threshold_gives(seed, levels):
    scores, labels = random_steps(seed, levels=levels)
    flat = sorted({q for own in scores for q in own if q is not None})
    tried = [flat[0] - 1, *((a + b) / 2 for a, b in pairwise(flat)), *flat, flat[-1] + 1]
    found = thresholds_from(scores, labels, 1)
    every = [figures_at(scores, labels, threshold) for threshold in tried]
    for name in FIGURES:
        [chosen] = found.chosen[name]
        assert figures_at(scores, labels, chosen)[name] == pytest.approx(max(own[name] for own in every), abs=1e-12)


def test_each_question_is_judged_with_the_threshold_of_the_others():
    scores, labels = random_steps(0, 60)
    questions = [f"question {i // 2}" for i in range(60)]
    found, folds = cross_thresholds(scores, labels, questions), deal(questions)
    assert sorted(set(folds)) == [0, 1, 2, 3, 4]
    for fold in range(5):
        others = [i for i in range(60) if folds[i] != fold]
        apart = thresholds_from([scores[i] for i in others], [labels[i] for i in others], 1)
        own = [i for i in range(60) if folds[i] == fold]
        for name in FIGURES:
            assert set(found.each(name)[own]) == set(apart.each(name))
    # one threshold per trajectory gives the sum of what each gives alone
    hits = sum(
        step_metrics([scores[i]], [labels[i]], float(found.each("step_accuracy")[i]))["step_accuracy"] * len(known)
        for i in range(60)
        if (known := [1 for q, y in zip(scores[i], labels[i], strict=True) if None not in (q, y)])
    )
    calibrated = calibrated_metrics(scores, labels, found)
    assert calibrated["step_accuracy_calibrated"] == pytest.approx(hits / step_metrics(scores, labels)["steps"])
    # the order of the records does not matter
    turned = calibrated_metrics(
        scores[::-1], labels[::-1], cross_thresholds(scores[::-1], labels[::-1], questions[::-1])
    )
    assert turned == pytest.approx(calibrated)


def test_pure_noise_gains_nothing():
    """A threshold picked on the data it is scored on would look better than it is."""
    rng = np.random.default_rng(0)
    labels = [[1.0, 0.0]] * 20
    found, cheated = [], []
    for _ in range(100):
        scores = rng.normal(size=(20, 2)).tolist()
        thresholds = cross_thresholds(scores, labels, [str(i) for i in range(20)])
        found.append(calibrated_metrics(scores, labels, thresholds)["balanced_accuracy_calibrated"])
        [own] = thresholds_from(scores, labels, 1).chosen["balanced_accuracy"]
        cheated.append(step_metrics(scores, labels, own)["balanced_accuracy"])
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)  # its standard error is 0.008
    assert np.mean(cheated) > 0.55


@pytest.mark.parametrize(
    ("scores", "labels", "questions"),
    [
        ([], [], []),
        ([[1.0, 0.0]], [[1.0, 0.0]], ["a"]),  # no other question
        ([[1.0, 0.0]] * 9, [[1.0, 0.0]] * 9, ["a"] * 9),
        ([[1.0]] * 9, [[1.0]] * 9, list("abcdefghi")),  # one class
        ([[1.0]] * 9, [[0.0]] * 9, list("abcdefghi")),
        ([[None, None]] * 9, [[1.0, 0.0]] * 9, list("abcdefghi")),
        ([[1.0, 0.0]] + [[1.0]] * 8, [[1.0, 0.0]] + [[1.0]] * 8, list("abcdefghi")),  # wrong in one question only
    ],
)
def test_undefined(scores, labels, questions):
    assert cross_thresholds(scores, labels, questions) is None
    found = calibrated_metrics(scores, labels, None)
    assert len(found) == 5
    assert set(found.values()) == {None}


def test_a_part_without_wrong_steps_has_what_is_defined():
    found = thresholds_from([[2.0, 1.0]], [[1.0, 0.0]], 1)
    assert calibrated_metrics([[5.0]], [[1.0]], found) == {
        "step_accuracy_calibrated": 1.0,
        "balanced_accuracy_calibrated": None,
        "accuracy_on_correct_calibrated": 1.0,
        "accuracy_on_wrong_calibrated": None,
        "first_error_accuracy_calibrated": 1.0,
    }
    with pytest.raises(PQMError, match="correct and wrong steps, found 2 and 0"):
        thresholds_from([[1.0, 1.0]], [[1.0, 1.0]], 1)


def test_many():
    """In n log n: trying every threshold on every step would take 40 billion comparisons."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 10)).tolist()
    labels = (rng.random((20_000, 10)) < 0.8).astype(float).tolist()
    thresholds = cross_thresholds(scores, labels, [str(i // 4) for i in range(20_000)])
    assert thresholds.each("step_accuracy").shape == (20_000,)
