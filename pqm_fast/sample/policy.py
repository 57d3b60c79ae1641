"""The protocol of a policy, which writes solutions: requests, completions, and the loop that keeps a policy busy."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from pqm_fast.errors import RecordError
from pqm_fast.sample.options import PolicyOptions


class Request(NamedTuple):
    """A solution to write: from the start, or from `steps` onwards.

    `seed` is a 64-bit number that determines the sample. `key` is for the caller: it comes back with the completion.
    `one_step`: the completion ends where the next step does, at the step separator. `limit`: the tokens of the
    completion at most, where that is fewer than the policy's own limit.
    """

    question: str
    steps: tuple[str, ...]
    seed: int
    key: Any
    one_step: bool = False
    limit: int | None = None


class Completion(NamedTuple):
    """What a policy wrote. `finished`: it stopped by itself; otherwise it was cut off at the token limit.

    `tokens`: how many it wrote, with the one that ended the text; None if a server does not say. `goes_on`: one step
    was asked for, and it ends with the step separator, so more may follow. The separator is not part of the text.
    """

    text: str
    finished: bool
    tokens: int | None = None
    goes_on: bool = False


# What became of one request. A RecordError means that the policy cannot take it: the prompt exceeds its context, say.
Outcome = tuple[Request, Completion | RecordError]


class Policy(Protocol):
    """Works on several requests at once and returns them in any order. See `complete`."""

    def room(self) -> int:
        """How many more requests it can take now."""

    def submit(self, request: Request) -> None:
        """Takes a request. Call it only if there is room."""

    def collect(self) -> list[Outcome]:
        """Waits until at least one submitted request is done. Raises PQMError if the policy as a whole fails."""

    def close(self) -> None:
        """Abandons the requests that are still in progress."""


def complete(policy: Policy, next_request: Callable[[], Request | None]) -> Iterator[Outcome]:
    """Keeps the policy as full as possible and yields the outcomes as they arrive.

    `next_request` returns None if there is nothing to ask for now. It is called again after each outcome; the loop ends
    when it returns None and no request is in progress.
    """
    in_progress = 0
    while True:
        while policy.room() and (request := next_request()) is not None:
            policy.submit(request)
            in_progress += 1
        if not in_progress:
            return
        for outcome in policy.collect():
            in_progress -= 1
            yield outcome


def stop_texts(options: PolicyOptions, request: Request) -> tuple[str, ...]:
    """The texts that end the completion of a request."""
    return (*options.stop, options.step_separator) if request.one_step else options.stop


def token_limit(options: PolicyOptions, request: Request) -> int:
    """The number of tokens at which the completion of a request is cut off."""
    return options.max_new_tokens if request.limit is None else min(request.limit, options.max_new_tokens)


def request_seed(*parts: Any) -> int:
    """A 64-bit seed that depends on `parts` alone: equal in every process, whatever was requested before."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")
