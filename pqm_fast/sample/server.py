"""A server that speaks OpenAI's completions protocol, such as vLLM; many requests at once, each retried.

`/completions`, not `/chat/completions`: the prompt is our text to the last character, so that a solution can be begun
in the middle (annotation), and the template is the same for a local model and a server. From the standard library:
a request takes seconds, so a connection each costs nothing, and the HTTP package below huggingface_hub changes its
name between the versions that transformers allows.
"""

import json
import os
import queue
import random
import socket
import ssl
import threading
from base64 import b64encode
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from textwrap import shorten
from time import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import Request as HTTPRequest

from pqm_fast.errors import PQMError, RecordError
from pqm_fast.sample.policy import Completion, Outcome, PolicyOptions, Request
from pqm_fast.sample.post import make_opener, post
from pqm_fast.sample.prompt import chat_format, write_prompt

FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED_WAIT = 1.0, 60.0, 300.0  # seconds
CUT = ("length", "content_filter")  # reasons to finish, among many for having stopped by itself
BROKEN = ("abort", "error")  # vLLM's where it gave up the request
REFUSED = (400, 413, 422)  # this prompt is not taken, others may be
NOT_THERE = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)  # unless it was there before
MOST_SAID = 2000  # bytes of a reply that a message may quote
PASSING = (408, 409, 425, 429)  # and every 5xx: the same request may work later


class ServerPolicy:
    """`url` up to and with /v1. The key of a server that asks for one stands in the variable OPENAI_API_KEY; a name and
    password in the URL (http://NAME:PASSWORD@HOST) are sent as such. Neither stands in any message.

    Raises PQMError for a key that no header can hold.
    """

    def __init__(self, url: str, model: str, options: PolicyOptions):
        place, self.secrets, self.authorization = _apart(url)
        self.url, self.model, self.options = f"{place}/completions", model, options
        self.prompt_format = options.prompt_format
        if options.prompt_format == "chat":
            from pqm_fast.model.tokenizer import load_tokenizer

            self.prompt_format = chat_format(load_tokenizer(options.tokenizer or model), options.system)
        self.in_flight = 0
        self.answered = False
        self.closed = threading.Event()
        self.todo: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        self.opener = make_opener()
        for _ in range(options.parallel):
            # as daemons: an interrupted command ends at once, whatever its requests wait for
            threading.Thread(target=self._work, daemon=True).start()

    def room(self) -> int:
        return self.options.parallel - self.in_flight

    def submit(self, request: Request) -> None:
        self.in_flight += 1
        self.todo.put(request)

    def collect(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        errors: list[Exception] = []
        while not outcomes + errors or not self.done.empty():
            found = self.done.get()
            (errors if isinstance(found, Exception) else outcomes).append(found)  # type: ignore[arg-type]
        if errors and not outcomes:
            raise errors[0]
        for error in errors:
            self.done.put(error)  # for the next call: what was answered is handed over first
        self.in_flight -= len(outcomes)
        return outcomes

    def close(self) -> None:
        self.closed.set()
        for _ in range(self.options.parallel):
            self.todo.put(None)

    def _work(self) -> None:
        while (request := self.todo.get()) is not None and not self.closed.is_set():
            try:
                self.done.put((request, self._ask(request)))
            except Exception as error:  # the main thread raises it
                self.done.put(error)

    def _ask(self, request: Request) -> Completion | RecordError:
        call = self._call(request)
        for attempt in range(self.options.retries + 1):
            asked_wait = 0.0
            try:
                completion = _parse(post(self.opener, call, self.options.timeout))
                self.answered = True
                return completion
            except HTTPError as error:
                self.answered = True
                with error:
                    found = f"HTTP {error.code}: {self._shown(_said(error) or str(error.reason), 300)}"
                if error.code in REFUSED:
                    return RecordError(f"{self.url} refuses it with {found}", "refused by the server")
                if error.code not in PASSING and error.code < 500:
                    raise PQMError(f"{self.url}: {found}; mend the policy's URL, model or key") from error
                asked_wait = _retry_after(error)
            except (OSError, HTTPException, ValueError) as error:
                reason = error.reason if isinstance(error, URLError) else error
                found = self._shown(str(reason), 200) or type(reason).__name__
                if not self.answered and isinstance(reason, NOT_THERE):
                    raise PQMError(f"{self.url}: no server there ({found}); start it, or mend the URL") from error
            wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1)
            if attempt < self.options.retries and self.closed.wait(max(wait, asked_wait)):
                break
        tries = self.options.retries + 1
        raise PQMError(
            f"{self.url}: no usable answer in {tries} tries, the last: {found}; see to the server (or raise --timeout, "
            "lower --parallel) and run the command again"
        )

    def _call(self, request: Request) -> HTTPRequest:
        options = self.options
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": write_prompt(self.prompt_format, request.question, request.steps, options.step_separator),
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": request.seed % 2**31,
        }
        if options.stop:
            body["stop"] = list(options.stop)
        headers = {"Content-Type": "application/json", "User-Agent": "pqm-fast"}
        if self.authorization:
            headers["Authorization"] = self.authorization
        return HTTPRequest(self.url, json.dumps(body).encode(), headers)

    def _shown(self, text: str, most: int) -> str:
        """What somebody else wrote, as it may stand in a message: servers repeat keys that they do not know."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return shorten(text[: MOST_SAID // 2], most)  # a secret that was cut off at the end of `text` is not in it


def _apart(url: str) -> tuple[str, list[str], str]:
    """(the URL without name and password, what must not be shown, the header Authorization or nothing)."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    place, secrets, authorization = urlunsplit(parts._replace(netloc=host)), [], ""
    if user:
        name, _, password = map(unquote, user.partition(":"))
        basic = b64encode(f"{name}:{password}".encode()).decode()
        secrets, authorization = [basic, user, password], f"Basic {basic}"
    if key := os.environ.get("OPENAI_API_KEY", "").strip():
        if not (key.isascii() and key.isprintable()):
            raise PQMError("OPENAI_API_KEY: holds characters that no key can have, such as a line break; set it again")
        secrets, authorization = [*secrets, key], f"Bearer {key}"
    written = [form for secret in secrets if secret for form in _written(secret)]
    return place, sorted(written, key=len, reverse=True), authorization


def _written(secret: str) -> set[str]:
    """How servers may write it: as it is, in JSON, in a URL."""
    in_json = json.dumps(secret)[1:-1]
    return {secret, in_json, in_json.replace("/", "\\/"), quote(secret), quote(secret, safe="")}


def _parse(body: bytes) -> Completion:
    """Raises ValueError for what is no answer of the protocol: cut off, or something else altogether."""
    try:
        choice = json.loads(body)["choices"][0]
        text, reason = choice["text"], choice.get("finish_reason")
        if not isinstance(text, str) or reason in BROKEN:
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        found = body[:MOST_SAID].decode("utf-8", "replace") or "nothing"
        raise ValueError(f"no completion in the answer: {found}") from error
    # JSON may hold half a surrogate pair, which no file takes
    return Completion(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), reason not in CUT)


def _said(error: HTTPError) -> str:
    """The server's own words, if they can be had."""
    try:
        return error.read(MOST_SAID).decode("utf-8", "replace")
    except (OSError, HTTPException):
        return ""


def _retry_after(error: HTTPError) -> float:
    """Seconds that the server asks to wait: a number or a date; 0 if it says nothing that can be read."""
    text = error.headers.get("Retry-After", "")
    try:
        seconds = float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - time()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_ASKED_WAIT)
