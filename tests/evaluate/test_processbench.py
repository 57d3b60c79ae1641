import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import processbench

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
