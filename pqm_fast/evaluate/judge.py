"""Symbolic equality by math-verify, in a child process that does not outlive its time.

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

from pqm_fast.errors import PQMError

LIMIT = 3  # seconds for one comparison, parsing included
MEMORY = 4 << 30  # bytes of address space

_lock = threading.Lock()
_child: subprocess.Popen[str] | None = None
_owner = 0  # a fork shares the pipes of its parent's child, and must not use them
_endless: set[str] = set()  # texts that give no verdict even beside 1


@lru_cache(maxsize=65536)
def symbolically_equal(a: str, b: str) -> bool:
    """Whether two answers are equal by math-verify, in either direction; from any thread.

    A comparison that takes longer than `LIMIT` seconds counts as different, with a warning; so does one that ends the
    child (no memory, too deep a recursion). A text to blame for it is different from all others from then on, so that
    it costs its time once and not once per answer.

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


def _ask(a: str, b: str) -> bool | None:
    """The child's verdict, or None if it ended over it."""
    child = _running()
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps([a, b]) + "\n")
        child.stdin.flush()
        reply = child.stdout.readline()
    except BaseException:  # interrupted: a later question must not read this answer
        _stop()
        raise
    if not reply:
        _stop()
        return None
    return reply == "true\n"


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
    """The child: a line [a, b] in, a line true or false out, until the input ends."""
    import resource

    from math_verify import LatexExtractionConfig, parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    print("ready", file=replies, flush=True)
    silent = os.open(os.devnull, os.O_WRONLY)  # parsers complain about odd text
    os.dup2(silent, 1)
    os.dup2(silent, 2)

    @lru_cache(maxsize=4096)
    def parsed(text: str) -> list:
        return parse(f"${text}$", [LatexExtractionConfig()], "no_fallback", parsing_timeout=None)

    for line in sys.stdin:
        signal.alarm(LIMIT)
        x, y = map(parsed, json.loads(line))
        # verify is not symmetric: it may simplify an assignment on one side only.
        equal = verify(x, y, timeout_seconds=None) or verify(y, x, timeout_seconds=None)
        signal.alarm(0)
        print(json.dumps(bool(equal)), file=replies, flush=True)
