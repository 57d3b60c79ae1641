"""Asks math-verify for values and symbolic equality, in a child process with a limit on its processor time.

Answers come from a language model, and some take hours to evaluate (`9^{9^{9^9}}`). math-verify limits itself with a
signal that Python handles; such a signal waits while C code computes, and works only in the main thread. The child
leaves the signal to the kernel, which ends the process wherever it is. The next comparison starts another child.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from functools import lru_cache
from typing import Any

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.answers.value import DIGITS, SCALES, coordinate

LIMIT = 3  # seconds of processor time for one question, parsing included
MEMORY = 4 << 30  # bytes of address space

_lock = threading.Lock()
_child: subprocess.Popen[str] | None = None
_owner = 0  # process id that started the child: a fork shares the pipes of its parent's child, and must not use them
_endless: set[str] = set()  # texts without a value in time, or without a verdict even when compared with 1


@lru_cache(maxsize=65536)
def symbolically_equal(a: str, b: str) -> bool:
    """Whether math-verify finds two answers equal, in either direction. May be called from any thread.

    Two answers count as different, with a warning, if their comparison takes longer than `LIMIT` seconds of processor
    time or ends the child (out of memory, recursion too deep). The text that caused this is different from all others
    from then on, so that it costs this time once and not for every answer.

    Raises:
        PQMError: math-verify cannot be loaded.
    """
    with _lock:
        if not _endless.isdisjoint((a, b)):
            return False
        verdict = _ask(a, b)
        if verdict is None:
            _endless.update(text for text in (a, b) if _ask(text, "1") is None)
            reason = f"it took over {LIMIT} s, or broke off"
            warnings.warn(f"no verdict whether {a!r} equals {b!r} ({reason}): counted as different", stacklevel=2)
        return bool(verdict)


@lru_cache(maxsize=65536)
def symbolic_values(text: str) -> tuple[tuple[str, str], ...] | None:
    """The value that math-verify reads in a text, as real and imaginary parts in decimals.

    A number has one value; an expression with variables has one at each point of `value.coordinate`. None if
    math-verify reads neither, or (with a warning) needs more than `LIMIT` seconds of processor time.

    Raises:
        PQMError: math-verify cannot be loaded.
    """
    with _lock:
        if text in _endless:
            return None
        values = _ask(text)
        if values is None:
            _endless.add(text)
            warnings.warn(f"no value of {text!r} (it took over {LIMIT} s, or broke off)", stacklevel=2)
            return None
        return tuple((real, imaginary) for real, imaginary in values) or None


def _ask(*question: str) -> Any:
    """The child's reply, or None if the question ended the child."""
    child = _running()
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(question) + "\n")
        child.stdin.flush()
        reply = child.stdout.readline()
    except BaseException:  # interrupted: a later question must not read the reply to this one
        _stop()
        raise
    if not reply:
        _stop()
        return None
    return json.loads(reply)


def _running() -> subprocess.Popen[str]:
    global _child, _owner
    if _child is None or _owner != os.getpid() or _child.poll() is not None:
        code = f"from {__name__} import _serve; _serve({LIMIT})"
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each thread takes address space
        _child, _owner = (
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=os.environ | one_thread,
            ),
            os.getpid(),
        )
        assert _child.stdout is not None
        if _child.stdout.readline() != "ready\n":
            _stop()
            raise PQMError("math-verify, which compares answers, cannot be loaded; see its message above")
    return _child


@atexit.register
def _stop() -> None:
    global _child
    if _child is not None and _owner == os.getpid():
        _child.kill()
        _child.communicate()
    _child = None


def _serve(limit: float) -> None:
    """Runs in the child until its input ends. It answers each line of input with one line: true or false for [a, b],
    and the values of a for [a]. A line that takes more than `limit` seconds of processor time ends it."""
    import resource

    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Expr

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    print("ready", file=replies, flush=True)
    silent = os.open(os.devnull, os.O_WRONLY)  # parsers complain about odd text
    os.dup2(silent, 1)
    os.dup2(silent, 2)

    @lru_cache(maxsize=4096)
    def parsed(text: str) -> list:
        return parse(f"${text}$", [LatexExtractionConfig()], "no_fallback", parsing_timeout=None)

    def values(text: str) -> list[tuple[str, str]]:
        expression = next((reading for reading in parsed(text) if isinstance(reading, Expr)), None)
        if expression is None:
            return []
        decimals = []
        try:
            evaluated = expression.doit()
            for k in range(len(SCALES) if expression.free_symbols else 1):
                # a name of several letters was a LaTeX command
                point = {
                    s: coordinate(s.name if len(s.name) == 1 or "_" in s.name else f"\\{s.name}", k)
                    for s in expression.free_symbols
                }
                real, imaginary = evaluated.evalf(DIGITS, subs=point).as_real_imag()
                if not (real.is_Float or real.is_Rational) or not (imaginary.is_Float or imaginary.is_Rational):
                    return []
                decimals.append((str(real.evalf(DIGITS)), str(imaginary.evalf(DIGITS))))
        except (ValueError, TypeError, ArithmeticError, AttributeError, NotImplementedError):  # sympy has no value
            return []
        return decimals

    for line in sys.stdin:
        texts = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limit)
        if len(texts) == 1:
            reply: Any = values(texts[0])
        else:
            x, y = map(parsed, texts)
            # verify is not symmetric: it may simplify an assignment on one side only.
            reply = bool(verify(x, y, timeout_seconds=None) or verify(y, x, timeout_seconds=None))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=replies, flush=True)
