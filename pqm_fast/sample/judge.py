"""Whether a solution ends with the right answer, in bounded time and memory whatever it holds.

`same_answer` limits its time with a signal, which stops Python, not what a library does below it, and not its memory.
Here it runs in a child process that is killed when it takes too long.
"""

import json
import resource
import select
import subprocess
import sys
from functools import lru_cache

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.answers import final_answer, marked_answer, same_answer

LIMIT = 10.0  # seconds for one comparison: above what the limits inside same_answer add up to
START_LIMIT = 120.0  # seconds until the child is ready
MEMORY = 4 * 2**30  # bytes of address space


class Judge:
    """Use as a context. `given_up` counts the comparisons that were killed: such answers count as wrong."""

    def __init__(self, limit: float = LIMIT):
        self.limit, self.given_up = limit, 0
        self.child: subprocess.Popen[str] | None = None
        self.same = lru_cache(maxsize=None)(self._same)  # whole: a verdict by the clock must not change within a run

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def right(self, begun: str, completion: str, finished: bool, gold: str) -> bool:
        """Whether `begun` (steps of a solution, or nothing) and its completion end with the answer `gold`.

        A marked answer may stand anywhere (`marked_answer`; the last counts). Without one it is the last number of the
        completion, if that was not cut off: there, and in the steps before it, a number may be any.
        """
        answer = marked_answer(f"{begun}\n{completion}") or (final_answer(completion) if finished else None)
        return answer is not None and self.same(answer, marked_answer(gold) or gold)

    def _same(self, answer: str, gold: str) -> bool:
        if answer.strip() == gold.strip():
            return True
        if self.child is not None and self.child.poll() is not None:
            self._stop()  # something else has ended it; not this answer's fault
        child = self.child or self._start()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps([answer, gold]) + "\n")
            child.stdin.flush()
            verdict = self._line(child, self.limit)
        except BrokenPipeError:
            verdict = ""
        if not verdict:
            self.given_up += 1
            self._stop()
        return verdict == "True\n"

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", f"from {__name__} import _serve; _serve()"]
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        if self._line(self.child, START_LIMIT) != "ready\n":
            self._stop()
            raise PQMError(
                "answers cannot be compared: the process for it does not start; check that math-verify works"
            )
        return self.child

    @staticmethod
    def _line(child: "subprocess.Popen[str]", limit: float) -> str:
        """The child's next line; nothing if it takes longer or has died. It writes one whole line for each it reads."""
        assert child.stdout is not None
        return child.stdout.readline() if select.select([child.stdout], [], [], limit)[0] else ""

    def _stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None


def _serve() -> None:
    """The child: a line [answer, gold] in, a line True or False out."""
    same_answer("x+x", "2x")  # imports sympy and makes a parser, before the clock runs
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(same_answer(*json.loads(line)), flush=True)
