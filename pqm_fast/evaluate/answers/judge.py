"""What is left to math-verify: values and symbolic equality, in a child process that does not outlive its time.

Answers come from a language model, and some take hours to evaluate (`9^{9^{9^9}}`). math-verify limits itself with a
signal that Python handles, which waits while C code computes and works in the main thread alone. The child leaves the
signal to the kernel, which ends the process wherever it is; the next comparison starts another.
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
_owner = 0  # a fork shares the pipes of its parent's child, and must not use them
_endless: set[str] = set()  # texts that give no value, or no verdict even beside 1


@lru_cache(maxsize=65536)
def symbolically_equal(a: str, b: str) -> bool:
    """Whether two answers are equal by math-verify, in either direction; from any thread.

    A comparison that takes longer than `LIMIT` seconds of processor time counts as different, with a warning; so does
    one that ends the child (no memory, too deep a recursion). A text to blame for it is different from all others from
    then on, so that it costs its time once and not once per answer.

    Raises:
        PQMError: math-verify cannot be loaded.
    """
    with _lock:
        if not _endless.isdisjoint((a, b)):
            return False
        verdict = _ask(a, b)
        if verdict is None:
            _endless.update(text for text in (a, b) if _ask(text, "1") is None)
            why = f"it took over {LIMIT} s, or broke off"
            warnings.warn(f"no verdict whether {a!r} equals {b!r} ({why}): counted as different", stacklevel=2)
        return bool(verdict)


@lru_cache(maxsize=65536)
def symbolic_values(text: str) -> tuple[tuple[str, str], ...] | None:
    """Real and imaginary part, as decimals, of what math-verify reads: of a number once, of an expression with
    variables at the points of `answers.value.coordinate`. None if it reads neither, or not within `LIMIT` seconds of
    processor time (with a warning).

    Raises:
        PQMError: math-verify cannot be loaded.
    """
    with _lock:
        if text in _endless:
            return None
        found = _ask(text)
        if found is None:
            _endless.add(text)
            warnings.warn(f"no value of {text!r} (it took over {LIMIT} s, or broke off)", stacklevel=2)
            return None
        return tuple((real, imaginary) for real, imaginary in found) or None


def _ask(*question: str) -> Any:
    """The child's reply, or None if it ended over it."""
    child = _running()
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(question) + "\n")
        child.stdin.flush()
        reply = child.stdout.readline()
    except BaseException:  # interrupted: a later question must not read this answer
        _stop()
        raise
    if not reply:
        _stop()
        return None
    return json.loads(reply)


def _running() -> subprocess.Popen[str]:
    global _child, _owner
    if _child is None or _owner != os.getpid() or _child.poll() is not None:
        code = f"from {__name__} import _serve; _serve()"
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each thread takes address space
        _child, _owner = (
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=os.environ | single,
            ),
            os.getpid(),
        )
        assert _child.stdout is not None
        if _child.stdout.readline() != "ready\n":
            _stop()
            raise PQMError("math-verify, which compares answers, cannot be loaded; its message stands above")
    return _child


@atexit.register
def _stop() -> None:
    global _child
    if _child is not None and _owner == os.getpid():
        _child.kill()
        _child.communicate()
    _child = None


def _serve() -> None:
    """The child, until its input ends: a line [a, b] in, a line true or false out; a line [a] in, its values out."""
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
        found = next((own for own in parsed(text) if isinstance(own, Expr)), None)
        if found is None:
            return []
        at = []
        try:
            done = found.doit()
            for k in range(len(SCALES) if found.free_symbols else 1):
                # a name of several letters was a command
                point = {
                    s: coordinate(s.name if len(s.name) == 1 or "_" in s.name else f"\\{s.name}", k)
                    for s in found.free_symbols
                }
                real, imaginary = done.evalf(DIGITS, subs=point).as_real_imag()
                if not (real.is_Float or real.is_Rational) or not (imaginary.is_Float or imaginary.is_Rational):
                    return []
                at.append((str(real.evalf(DIGITS)), str(imaginary.evalf(DIGITS))))
        except (ValueError, TypeError, ArithmeticError, AttributeError, NotImplementedError):  # as sympy says it
            return []
        return at

    for line in sys.stdin:
        texts = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        if len(texts) == 1:
            reply: Any = values(texts[0])
        else:
            x, y = map(parsed, texts)
            # verify is not symmetric: it may simplify an assignment on one side only.
            reply = bool(verify(x, y, timeout_seconds=None) or verify(y, x, timeout_seconds=None))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=replies, flush=True)
