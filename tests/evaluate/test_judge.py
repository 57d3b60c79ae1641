"""Symbolic comparison in a child process: it ends in time, and the next one works."""

import os
import signal
import threading

import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.answers import judge, same_answer
from pqm_fast.evaluate.answers.form import form
from pqm_fast.evaluate.answers.judge import symbolic_values, symbolically_equal
from pqm_fast.evaluate.answers.value import SCALES, coordinate


@pytest.fixture(autouse=True)
def fresh():
    symbolically_equal.cache_clear()
    symbolic_values.cache_clear()
    form.cache_clear()
    judge._endless.clear()


@pytest.mark.usefixtures("short_judging")
def test_a_number_that_takes_forever_is_different_and_said():
    """A power of integers is one long call into C, which no Python signal handler interrupts."""
    assert symbolically_equal("x+1", "1+x")
    child = judge._child
    endless = r"\sum_{k=1}^{3} 7^{99999999 k}"
    with pytest.warns(UserWarning, match=r"took over 0\.5 s, or broke off"):
        assert not same_answer(endless, "5")
    assert not any(same_answer(endless, f"({n}, {n})") for n in range(50))  # the text is known now
    assert same_answer(endless, endless)
    assert child.returncode == -signal.SIGPROF  # sent by the kernel when the processor time was used up
    assert symbolically_equal("2\\sqrt{3}", "\\sqrt{12}")


@pytest.mark.usefixtures("short_judging")
def test_who_is_to_blame():
    with pytest.warns(UserWarning, match="no verdict"):
        assert not symbolically_equal("7^{99999999}", "x+1")
    assert symbolically_equal("x+1", "1+x")


def test_a_comparison_that_breaks_the_child_is_different_and_said(monkeypatch):
    assert symbolically_equal("x+1", "1+x")
    child = judge._child
    with monkeypatch.context() as patch:
        patch.setattr(child.stdin, "flush", lambda: child.kill() or child.wait(), raising=False)
        with pytest.warns(UserWarning, match=r"no verdict whether 'x\+3' equals '3\+x'"):
            assert not symbolically_equal("x+3", "3+x")
    assert judge._child is not child
    assert symbolically_equal("x+2", "2+x")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (r"\sum_{k=1}^{4} k", (10, 0)),
        (r"\int_0^1 x^2\,dx", (1 / 3, 0)),
        (r"\mathbb{R}", None),
        ("\ud800", None),
    ],
)
def test_values(text, values):
    found = symbolic_values(text)
    assert (found and [float(part) for part in found[0]]) == (values and pytest.approx(values))


def test_values_of_an_expression_are_those_at_its_points():
    (value, *others) = symbolic_values(r"\frac{d}{dx} x^3")
    assert len(others) == len(SCALES) - 1
    assert float(value[0]) == pytest.approx(3 * float(coordinate("x", 0)) ** 2)


def test_one_child_for_all():
    assert symbolically_equal("x+1", "1+x")
    child = judge._child
    assert not symbolically_equal("x+1", "x+2")
    assert judge._child is child


def test_a_child_that_was_killed_is_replaced():
    assert symbolically_equal("x+1", "1+x")
    judge._child.send_signal(signal.SIGKILL)
    judge._child.wait()
    assert symbolically_equal("x+2", "2+x")


def test_from_another_thread():
    verdicts = []
    thread = threading.Thread(
        target=lambda: verdicts.extend(symbolically_equal(a, "\\sqrt{27}") for a in ("3\\sqrt{3}", "4\\sqrt{3}"))
    )
    thread.start()
    thread.join()
    assert verdicts == [True, False]


def test_an_interrupt_does_not_leave_a_reply_behind(monkeypatch):
    """Ctrl-C while the child thinks: its answer must not be read as that of the next question."""
    assert symbolically_equal("x+1", "1+x")
    with monkeypatch.context() as patch:
        patch.setattr(judge._child.stdout, "readline", interrupt, raising=False)
        with pytest.raises(KeyboardInterrupt):
            symbolically_equal("x+3", "3+x")
    assert judge._child is None
    assert not symbolically_equal("x+1", "x+4")


def interrupt():
    raise KeyboardInterrupt


def test_a_fork_uses_no_pipe_of_its_parent():
    assert symbolically_equal("x+1", "1+x")
    own = judge._child.pid
    child = os.fork()
    if not child:
        right = symbolically_equal("y+1", "1+y") and not symbolically_equal("y+1", "y+2")
        os._exit(0 if right and judge._child.pid != own else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert symbolically_equal("x+5", "5+x")
    assert judge._child.pid == own


def test_without_math_verify(monkeypatch, tmp_path, capfd):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no antlr')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    judge._stop()
    with pytest.raises(PQMError, match="math-verify, which compares answers, cannot be loaded"):
        symbolically_equal("x+1", "1+x")
    assert "no antlr" in capfd.readouterr().err


@pytest.mark.parametrize("odd", ["\ud800", "\x00", "\n", '"', "\u2028", "\\"])
def test_odd_text_keeps_the_lines_apart(odd):
    assert not symbolically_equal(odd, "1")
    assert symbolically_equal("x+1", "1+x")
