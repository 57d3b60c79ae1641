"""What writes solutions: a protocol of three methods, its options, and a policy's name on the command line."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from pqm_fast.common.names import check_model_name, redacted
from pqm_fast.common.options import DType, Text
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.model.identity import model_key


class Request(NamedTuple):
    """A solution to begin, or to go on with. `seed`: 64 bits that decide the sample; `key`: the caller's own."""

    question: str
    steps: tuple[str, ...]
    seed: int
    key: Any


class Completion(NamedTuple):
    """What a policy wrote. `finished`: it stopped by itself; otherwise it was cut off at the token limit."""

    text: str
    finished: bool


# what became of one request: a RecordError where the policy cannot take it, such as a prompt beyond its context
Outcome = tuple[Request, Completion | RecordError]


class Policy(Protocol):
    """Works on several requests at once; they come back in any order. See `complete`."""

    def room(self) -> int:
        """How many more requests it takes now."""

    def submit(self, request: Request) -> None:
        """Takes a request, if there is room."""

    def collect(self) -> list[Outcome]:
        """Waits until at least one submitted request is done. PQMError if the policy as a whole fails."""

    def close(self) -> None:
        """Gives up what is still in the works."""


@dataclass(frozen=True)
class PolicyOptions:
    """How policies write."""

    prompt_format: Text = "{prompt}\n"
    """Text of the question; {prompt} stands for it. `chat`: the chat template of the policy's tokenizer."""
    system: Text = ""
    """System message, with `--prompt-format chat`."""
    step_separator: Text = "\n"
    """What stands between steps: completions are split there, and the steps of a prefix end with it."""
    temperature: float = 0.7
    """Sampling temperature; 0 always takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens of this total probability."""
    max_new_tokens: int = 1024
    """Longest completion in tokens; a longer one is cut off there."""
    stop: tuple[Text, ...] = ()
    """Texts that end a completion; they are no part of it."""
    parallel: int = 64
    """Completions in the works at once: the batch of a local model, the requests in flight to a server."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer whose chat template a server's prompts take. Default: the model's name."""
    timeout: float = 600.0
    """Seconds that a server may take for a whole reply, the time it takes to write the completion included."""
    retries: int = 8
    """How often a request to a server is tried again, after 1, 2, 4, ... seconds (at most 60), before giving up."""
    device: str = "auto"
    """Of a local model: cuda if there is one, otherwise cpu."""
    dtype: DType = "auto"
    """Of a local model: bfloat16 on a GPU, float32 on a CPU."""
    kv_cache: Literal["dynamic", "static"] = "dynamic"
    """Keys and values of a local model: with static, transformers compiles the decoding on a GPU."""

    def __post_init__(self) -> None:
        if self.prompt_format != "chat" and self.prompt_format.count("{prompt}") != 1:
            raise PQMError(f"prompt_format {self.prompt_format!r}: {{prompt}} must stand in it exactly once")
        if self.system and self.prompt_format != "chat":
            raise PQMError("system: is for --prompt-format chat; write it into the prompt format instead")
        if not self.step_separator:
            raise PQMError("step_separator: empty; give the text between two steps")
        if "" in self.stop:
            raise PQMError("stop: an empty text would end every completion at once; leave it out")
        limits = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "timeout": (self.timeout > 0, "above 0"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "parallel": (self.parallel >= 1, "at least 1"),
            "retries": (self.retries >= 0, "0 or more"),
        }
        for name, (fits, wanted) in limits.items():
            if not fits or not math.isfinite(getattr(self, name)):
                raise PQMError(f"{name}: {getattr(self, name)} was given; it must be {wanted}")

    def decides(self) -> dict[str, Any]:
        """The options that completions depend on, beyond rounding."""
        names = ("prompt_format", "system", "step_separator", "temperature", "top_p", "max_new_tokens", "stop")
        return {name: getattr(self, name) for name in (*names, "tokenizer", "dtype")}


class PolicyName(NamedTuple):
    """`kind`: server, arithmetic or hub; `place`: the server's URL, or nothing; `model`: what the results call it."""

    kind: str
    place: str
    model: str


def parse_policy(text: str) -> PolicyName:
    """`http://HOST:PORT/v1#MODEL`, `arithmetic:NAME`, or a model folder or hub id. Raises PQMError."""
    if "://" in text:
        place, _, model = text.partition("#")
        try:
            url = urlsplit(place)
            usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and "?" not in place
        except ValueError:  # a port that is no number
            usable = False
        if not usable or not model:
            raise PQMError(
                f"policy {redacted(text)}: name a server and its model as http://localhost:8000/v1#MODEL, without a "
                "query; a key goes into the variable OPENAI_API_KEY"
            )
        return PolicyName("server", place.rstrip("/"), model)
    if text.startswith("arithmetic:"):
        return PolicyName("arithmetic", "", text.removeprefix("arithmetic:"))
    if not text:
        raise PQMError("policy: empty; name a model folder, a hub id, http://HOST:PORT/v1#MODEL or arithmetic:NAME")
    check_model_name(text)
    return PolicyName("hub", "", text)


def policy_state(text: str) -> list[Any]:
    """What tells one policy from another: the model of a server, wherever that is, and the weights of a folder."""
    name = parse_policy(text)
    return [name.kind, name.model, *(model_key(Path(name.model)) if name.kind == "hub" else [])]


def open_policy(text: str, options: PolicyOptions, say: Callable[[str], Any] = lambda text: None) -> Policy:
    """Raises PQMError for a policy that does not exist or cannot be loaded. A server is asked only by requests.

    `say` is told now and then how far a batch is, by policies that write in batches.
    """
    name = parse_policy(text)
    if name.kind == "server":
        from pqm_fast.sample.server import ServerPolicy

        return ServerPolicy(name.place, name.model, options)
    if name.kind == "arithmetic":
        from pqm_fast.sample.arithmetic import ArithmeticPolicy

        return ArithmeticPolicy(name.model)
    from pqm_fast.sample.hub import HubPolicy

    return HubPolicy(name.model, options, say)


def complete(policy: Policy, next_request: Callable[[], Request | None]) -> Iterator[Outcome]:
    """Keeps the policy as full as it can be and yields what comes back.

    `next_request` returns None where there is nothing to ask now; it is asked again after each outcome, and the end
    is when nothing is in the works either.
    """
    waiting = 0
    while True:
        while policy.room() and (request := next_request()) is not None:
            policy.submit(request)
            waiting += 1
        if not waiting:
            return
        for outcome in policy.collect():
            waiting -= 1
            yield outcome


def request_seed(*parts: Any) -> int:
    """64 bits from what the sample stands for: the same in every process, whatever was asked before."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")
