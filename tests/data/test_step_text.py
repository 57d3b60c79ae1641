"""From text to steps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqm_fast.data.records import EMPTY_STEP
from pqm_fast.data.step_text import split_steps, step_spans


@pytest.mark.parametrize(
    ("text", "separator", "steps"),
    [
        ("a\nb", "\n", ["a", "b"]),
        (" a \n\n\t\n b\n", "\n", ["a", "b"]),
        ("a\nb\n\nc", "\n\n", ["a\nb", "c"]),
        ("a\r\nb", "\n", ["a", "b"]),
        ("a\u2028b\x0bc", "\n", ["a\u2028b\x0bc"]),
        ("Step 1: a Step 2: b", "Step", ["1: a", "2: b"]),
        ("", "\n", [EMPTY_STEP]),
        (" \n \u3000\n", "\n", [EMPTY_STEP]),
        ("x" * 10_000 + "\n" + "y" * 10_000, "\n", ["x" * 10_000, "y" * 10_000]),
    ],
)
def test_split_steps(text, separator, steps):
    assert split_steps(text, separator) == steps


@settings(deadline=None)  # the time of a loaded machine says nothing
@given(st.text(), st.sampled_from(["\n", "\n\n", " ", "ab"]))
def test_steps_are_never_blank_and_hold_everything_but_blanks(text, separator):
    steps = split_steps(text, separator)
    assert steps
    assert all(step.strip() == step != "" for step in steps)
    spans = step_spans(text, separator)
    assert [text[start:end] for start, end in spans] == (steps if text.replace(separator, " ").strip() else [])
    assert sorted(spans) == spans
    if steps != [EMPTY_STEP]:
        assert "".join("".join(steps).split()) == "".join(text.replace(separator, " ").split())
