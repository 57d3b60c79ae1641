"""The options of `pqm-fast serve`."""

from dataclasses import dataclass, field
from typing import Literal

from pqm_fast.common.options import Text
from pqm_fast.errors import PQMError
from pqm_fast.scoring.options import ModelOptions


@dataclass(frozen=True)
class Limits:
    """What one client, and all clients together, may ask for."""

    max_body_mb: float = 8.0
    """Largest body of a request, in MiB."""
    max_solutions: int = 1024
    """Most solutions in a request."""
    max_steps: int = 100_000
    """Most steps in a request, of all its solutions together."""
    max_requests: int = 1024
    """Requests at work or waiting at a time; more are answered with code 429."""
    max_waiting_mb: float = 256.0
    """Largest sum of the bodies of these requests, in MiB; beyond it, requests are answered with code 429."""
    timeout: float = 120.0
    """Seconds from the last byte of a request to its answer; after them, the answer is code 504."""
    receive_timeout: float = 20.0
    """Seconds that a client may take to send a request, that it may not read its answer, and that a connection may do
    nothing."""

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if not 0 < number < float("inf"):
                raise PQMError(f"{name}: {number} was given; it must be above 0")


@dataclass(frozen=True)
class ServeConfig:
    """Answer requests for Q-values and step rewards over HTTP. A bearer token, if clients must send one, is in the
    variable PQM_FAST_TOKEN."""

    model: str
    """Folder or hub id of a pqm-fast checkpoint; with --preset, of a third-party PRM."""
    host: str = "127.0.0.1"
    """Address to listen at. The default is reachable from this machine alone; 0.0.0.0 is reachable from everywhere."""
    port: int = 8100
    """Port to listen at; 0 takes a free one and prints it."""
    gather_ms: float = 3.0
    """Milliseconds that an idle server waits for more requests before it computes the first, so that they share a
    batch. A busy server does not wait."""
    text_separator: Text = "\n\n"
    """Text between the steps of a solution that a request gives as one text."""
    conversation: Text = "chat"
    """How the clients of /get_reward, /classify and /v1/embeddings write a question and its solution: a text with
    {prompt} and {solution} in it. `chat`: the chat template of the model's tokenizer."""
    aggregate: Literal["min", "last", "mean", "softmin", "prod", "max"] = "min"
    """How these clients' reward, a probability, follows from the Q-values of the steps. prod: the product of the
    probabilities."""
    scoring: ModelOptions = field(default_factory=lambda: ModelOptions(prefix_tree=True))
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise PQMError(f"port: {self.port} was given; it must be a number from 0 to 65535")
        if not 0 <= self.gather_ms < float("inf"):
            raise PQMError(f"gather_ms: {self.gather_ms} was given; it must be 0 or more")
        if not self.text_separator:
            raise PQMError("text_separator: empty; set the text between two steps")
        if self.conversation == "chat":
            return
        _, has_prompt, rest = self.conversation.partition("{prompt}")
        between, has_solution, after = rest.partition("{solution}")
        if not (has_prompt and has_solution and between) or "{prompt}" in rest or "{solution}" in after:
            raise PQMError(
                f"conversation {self.conversation!r}: {{prompt}} must occur in it once, then a text, then {{solution}}"
            )
