"""What models do about first errors, against a definition in plain Python and against the figures of `evaluate`."""

from collections import Counter

import numpy as np
import pytest

from pqm_fast.data.records import Record
from pqm_fast.evaluate import cross_thresholds, evaluate_steps
from pqm_fast.report.first_errors import FirstErrors


def scored(seed, solutions=120):
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(solutions):
        length = int(rng.integers(1, 9))
        y = rng.random(length) < 0.8
        q = rng.normal(2.0 * y, 1)
        labels = [None if rng.random() < 0.1 else float(value) for value in y]
        scores = [None if rng.random() < 0.1 else float(value) for value in q]
        pairs.append((Record(str(i), f"question {i // 3}", ["s"] * length, labels), scores))
    return pairs


def outcomes(pairs):
    found = FirstErrors()
    for key, (record, scores) in enumerate(pairs):
        found.add(key, record, scores)
    return found.outcomes()


@pytest.mark.parametrize("seed", range(2))
def test_against_the_definition(seed):
    pairs = scored(seed)
    prompts = [record.prompt for record, _ in pairs]
    thresholds = cross_thresholds([q for _, q in pairs], [r.labels for r, _ in pairs], prompts)
    expected = {}
    for key, ((record, scores), level) in enumerate(zip(pairs, thresholds.each("first_error_accuracy"), strict=True)):
        steps = list(enumerate(zip(scores, record.labels, strict=True)))
        if all(None in step for _, step in steps):
            continue
        wrong = next((t for t, (_, y) in steps if y is not None and y < 0.5), None)
        called = next((t for t, (q, y) in steps if None not in (q, y) and q < level), None)
        if wrong is None:
            outcome = "alone" if called is None else "early"
        elif called is None:
            outcome = "missed"
        else:
            outcome = "found" if called == wrong else "early" if called < wrong else "missed"
        expected[key] = (outcome, called)
    found = outcomes(pairs)
    assert found == expected
    counts = Counter(outcome for outcome, _ in found.values())
    assert len(counts) == 4
    right = (counts["found"] + counts["alone"]) / len(found)
    assert right == pytest.approx(evaluate_steps(pairs)["steps"]["first_error_accuracy_calibrated"])


def test_without_a_threshold_there_are_no_outcomes():
    assert outcomes([]) == outcomes([(Record("a", "Q?", ["s"] * 2, [1.0, 0.0]), [1.0, -1.0])]) == {}
    assert outcomes([(Record("a", "Q?", ["s"]), [1.0])]) == {}


def test_the_first_of_two_copies_counts():
    pairs = scored(0)
    once = outcomes(pairs)
    found = FirstErrors()
    for key, (record, scores) in enumerate([*pairs, *pairs]):
        found.add(key % len(pairs), record, scores)
    assert found.outcomes() == once
