from itertools import pairwise

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import calibrate_threshold, cross_calibrated, processbench

FOUND, LATE, NONE = [1.0, -1.0, -1.0], [1.0, 1.0, -1.0], [1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("scores", "first_errors", "erroneous", "correct", "f1"),
    [
        ([FOUND, NONE], [1, -1], 1.0, 1.0, 1.0),
        ([FOUND, LATE, NONE, FOUND, NONE, NONE], [1, 1, -1, -1, -1, -1], 0.5, 0.75, 0.6),
        ([LATE, FOUND], [1, -1], 0.0, 0.0, 0.0),
        ([FOUND], [2], 0.0, None, None),
        ([NONE], [-1], None, 1.0, None),
        ([], [], None, None, None),
        ([[None, 1.0, -1.0], [None, None, None]], [2, -1], 1.0, 1.0, 1.0),
        ([[-1.0, 1.0]], [0], 1.0, None, None),
    ],
)
def test_definition(scores, first_errors, erroneous, correct, f1):
    found = processbench(scores, first_errors)
    assert found["accuracy_on_erroneous"] == erroneous
    assert found["accuracy_on_correct"] == correct
    assert found["f1"] == (None if f1 is None else pytest.approx(f1))
    assert found["erroneous"] + found["correct"] == len(scores)


def test_threshold_is_the_callers():
    assert processbench([[0.4, 0.6]], [0], threshold=0.5)["accuracy_on_erroneous"] == 1.0
    assert processbench([[0.4, 0.6]], [0])["accuracy_on_erroneous"] == 0.0


@pytest.mark.parametrize(
    ("scores", "first_errors", "message"),
    [
        ([[1.0]], [1], r"solution 0: first error 1, expected -1 \.\. 0"),
        ([[1.0]], [-2], "first error -2"),
        ([[1.0]], [], "1 solutions but 0"),
        ([[1.0, float("nan")]], [0], "NaN"),
    ],
)
def test_bad_input(scores, first_errors, message):
    with pytest.raises(PQMError, match=message):
        processbench(scores, first_errors)


def test_interval_of_f1():
    """The delta method against the spread of F1 over many samples of 200 erroneous and 100 correct solutions."""
    rng = np.random.default_rng(0)

    def sample():
        hit = np.r_[rng.random(200) < 0.6, rng.random(100) < 0.8]
        scores = [[-1.0] if h == (i < 200) else [1.0] for i, h in enumerate(hit)]
        return processbench(scores, [0] * 200 + [-1] * 100)

    found = [sample() for _ in range(300)]
    widths = [(own["f1_high"] - own["f1_low"]) / 2 / 1.959964 for own in found]
    assert np.mean(widths) == pytest.approx(np.std([own["f1"] for own in found]), rel=0.15)
    truth = 2 * 0.6 * 0.8 / 1.4
    assert np.mean([own["f1_low"] <= truth <= own["f1_high"] for own in found]) > 0.92


def random_solutions(rng, count, levels=1000):
    scores, first_errors = [], []
    for _ in range(count):
        steps = int(rng.integers(1, 7))
        label = int(rng.integers(-1, steps))
        q = (rng.integers(0, levels, steps) / levels * 4 - 1).tolist()
        if label >= 0:
            q[label] -= 1.5
        scores.append([None if rng.random() < 0.1 else x for x in q])
        first_errors.append(label)
    return scores, first_errors


@pytest.mark.parametrize("levels", [2, 7, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_calibrated_threshold_is_the_best_of_all(seed, levels):
    scores, first_errors = random_solutions(np.random.default_rng(seed), 40, levels)
    flat = sorted({q for steps in scores for q in steps if q is not None})
    candidates = [flat[0] - 1, *((a + b) / 2 for a, b in pairwise(flat)), *flat, flat[-1] + 1]
    best = max(processbench(scores, first_errors, threshold)["f1"] for threshold in candidates)
    chosen = calibrate_threshold(scores, first_errors)
    assert processbench(scores, first_errors, chosen)["f1"] == best


def test_calibrated_threshold_lies_between_the_two_kinds():
    assert calibrate_threshold([[3.0, 1.0], [4.0, 5.0]], [1, -1]) == 2.0
    with pytest.raises(PQMError, match="erroneous and correct solutions, found 2 and 0"):
        calibrate_threshold([[1.0], [1.0]], [0, 0])
    with pytest.raises(PQMError, match="found 0 and 0"):
        calibrate_threshold([], [])


def test_nothing_that_a_threshold_could_find():
    assert np.isfinite(calibrate_threshold([[None], [None]], [0, -1]))


def test_no_question_chooses_its_own_threshold():
    """Scores of one question are moved far away: its own threshold stays, those of the other folds may not."""
    scores, first_errors = random_solutions(np.random.default_rng(0), 60)
    questions = [f"question {i // 2}" for i in range(60)]
    before = cross_calibrated(scores, first_errors, questions)
    moved = [[None if q is None else q + 50 for q in own] if i < 2 else own for i, own in enumerate(scores)]
    after = cross_calibrated(moved, first_errors, questions)
    assert len(before["thresholds"]) == 5
    assert before["erroneous"] + before["correct"] == 60
    assert any(a == b for a, b in zip(before["thresholds"], after["thresholds"], strict=True))
    # neither the order of the records nor other questions' copies matter
    turned = cross_calibrated(scores[::-1], first_errors[::-1], questions[::-1])
    assert turned == before


def test_pure_noise_gains_nothing_from_calibration():
    """A threshold picked on the data it is scored on would look better than it is."""
    rng = np.random.default_rng(0)
    labels = [0, -1] * 20
    found, cheated = [], []
    for _ in range(100):
        scores = rng.normal(size=(40, 1)).tolist()
        found.append(cross_calibrated(scores, labels, [str(i) for i in range(40)])["f1"])
        cheated.append(processbench(scores, labels, calibrate_threshold(scores, labels))["f1"])
    assert np.mean(found) < 0.5 < np.mean(cheated)


def test_too_few_to_calibrate():
    assert cross_calibrated([[1.0], [1.0]], [0, -1], ["a", "b"]) is None
    assert cross_calibrated([], [], []) is None


def test_calibration_of_many():
    """In n log n: trying every threshold on every solution would take billions of comparisons."""
    scores, first_errors = random_solutions(np.random.default_rng(0), 20_000, 10**9)
    best = processbench(scores, first_errors, calibrate_threshold(scores, first_errors))["f1"]
    assert all(best >= processbench(scores, first_errors, threshold)["f1"] for threshold in (-1.0, 0.0, 1.0))
