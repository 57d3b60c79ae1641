"""A server that speaks OpenAI's completions protocol, such as vLLM: many requests at once, each retried if it fails.

It uses `/completions`, not `/chat/completions`: our text is then the prompt to the last character, so that a policy can
continue a solution from the middle (annotation), and the template is the same for a local model and a server.

It uses the standard library: a request takes seconds, so a new connection for each costs nothing, and the HTTP package
below huggingface_hub has different names in the versions that transformers allows.
"""

import json
import queue
import random
import socket
import ssl
import threading
from http.client import HTTPException
from textwrap import shorten
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request as HTTPRequest

from pqm_fast.common.credentials import split_credentials
from pqm_fast.common.http_post import QUOTED_BYTES, body_text, make_opener, post, retry_after
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.sample.options import PolicyOptions
from pqm_fast.sample.policy import Completion, Outcome, Request, stop_texts, token_limit
from pqm_fast.sample.prompt import chat_format, write_prompt

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds
CUT_OFF_REASONS = ("length", "content_filter")  # the many other reasons mean that it stopped by itself
ABORTED_REASONS = ("abort", "error")  # vLLM's reasons if it gave up the request
REFUSED_CODES = (400, 413, 422)  # the server does not accept this prompt, but may accept others
TRANSIENT_CODES = (408, 409, 425, 429)  # and every 5xx: the same request may work later
NO_SERVER_ERRORS = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)  # unless it answered before


class ServerPolicy:
    """A model of the server at `url`, which ends with /v1.

    If the server needs a key, it is in the variable OPENAI_API_KEY; a name and password in the URL
    (http://NAME:PASSWORD@HOST) are sent as basic authentication. Neither appears in any message.

    A step of a server that does not say what ended it goes on or ends as its likeliest next token does; that is an
    approximation of the one that was sampled.

    Raises PQMError for a key that no header can hold.
    """

    def __init__(self, url: str, model: str, options: PolicyOptions):
        public_url, self.credentials = split_credentials(url)
        self.url, self.model, self.options = f"{public_url}/completions", model, options
        self.prompt_format = options.prompt_format
        if options.prompt_format == "chat":
            from pqm_fast.model.tokenizer import load_tokenizer

            self.prompt_format = chat_format(load_tokenizer(options.tokenizer or model), options.system)
        self.in_flight = 0
        self.has_answered = False
        self.closed = threading.Event()
        self.todo: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        self.opener = make_opener()
        for _ in range(options.parallel):
            # daemon threads: an interrupted command ends at once, whatever its requests wait for
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
            result = self.done.get()
            if isinstance(result, Exception):
                errors.append(result)
            else:
                outcomes.append(result)
        if errors and not outcomes:
            raise errors[0]
        for error in errors:
            self.done.put(error)  # for the next call: the completions are handed over first
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
        answer = self._answer(request, {"stop": stops} if (stops := list(stop_texts(self.options, request))) else {})
        if isinstance(answer, RecordError):
            return answer
        completion = Completion(answer.text, finished=answer.reason not in CUT_OFF_REASONS, tokens=answer.tokens)
        if not (request.one_step and completion.finished):
            return completion
        separator = self.options.step_separator
        if answer.text.endswith(separator):  # some servers return the stop text
            return completion._replace(text=answer.text.removesuffix(separator), goes_on=True)
        if answer.says_stop:
            return completion._replace(goes_on=answer.stop == separator)
        if self.options.stop:
            raise PQMError(
                f"{self.url}: does not say which stop text ended a step (stop_reason, matched_stop), so --stop "
                "cannot be told from the step separator; leave out --stop, or use a server such as vLLM"
            )
        # This server reports a stop text and the end in the same way: the likeliest next token tells them apart.
        next_token = self._answer(request, {"max_tokens": 1, "temperature": 0}, answer.text)
        if isinstance(next_token, RecordError):  # the text fills the context: so will the request for another step
            return completion._replace(goes_on=True)
        counts = (answer.tokens, next_token.tokens)
        tokens = None if None in counts else sum(filter(None, counts))
        is_end = not next_token.text and next_token.reason not in CUT_OFF_REASONS
        return completion._replace(tokens=tokens, goes_on=not is_end)

    def _answer(self, request: Request, changes: dict[str, Any], written: str = "") -> "_Answer | RecordError":
        """The answer to a request whose body has these `changes`, after the text that is `written` already."""
        http_request = self._http_request(request, changes, written)
        for attempt in range(self.options.retries + 1):
            pause = 0.0
            try:
                answer = _parse_answer(post(self.opener, http_request, self.options.timeout))
                self.has_answered = True
                return answer
            except HTTPError as error:
                self.has_answered = True
                with error:
                    failure = f"HTTP {error.code}: {self._quoted(body_text(error) or str(error.reason), 300)}"
                if error.code in REFUSED_CODES:
                    return RecordError(f"{self.url} refuses it with {failure}", "refused by the server")
                if error.code not in TRANSIENT_CODES and error.code < 500:
                    raise PQMError(f"{self.url}: {failure}; correct the policy's URL, model or key") from error
                pause = retry_after(error)
            except (OSError, HTTPException, ValueError) as error:
                reason = error.reason if isinstance(error, URLError) else error
                failure = self._quoted(str(reason), 200) or type(reason).__name__
                if not self.has_answered and isinstance(reason, NO_SERVER_ERRORS):
                    raise PQMError(f"{self.url}: no server there ({failure}); start it, or correct the URL") from error
            wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1)
            if attempt < self.options.retries and self.closed.wait(max(wait, pause)):
                break
        tries = self.options.retries + 1
        raise PQMError(
            f"{self.url}: no usable answer in {tries} tries, the last: {failure}; check the server (or raise "
            "--timeout, lower --parallel) and run the command again"
        )

    def _http_request(self, request: Request, changes: dict[str, Any], written: str) -> HTTPRequest:
        options = self.options
        prompt = write_prompt(self.prompt_format, request.question, request.steps, options.step_separator)
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt + written,
            "max_tokens": token_limit(options, request),
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": request.seed % 2**31,
        } | changes
        headers = {"Content-Type": "application/json", "User-Agent": "pqm-fast"}
        if self.credentials.authorization:
            headers["Authorization"] = self.credentials.authorization
        return HTTPRequest(self.url, json.dumps(body).encode(), headers)

    def _quoted(self, text: str, max_length: int) -> str:
        """The server's words as a message may show them: without secrets, in at most `max_length` characters."""
        # quotes only half of what was read, because a secret cut off at the end of `text` would not be recognised
        return shorten(self.credentials.hide(text)[: QUOTED_BYTES // 2], max_length)


class _Answer(NamedTuple):
    """A completion as a server describes it. `says_stop`: whether it says if a stop text ended it; then `stop` is that
    text, or None."""

    text: str
    reason: str | None
    tokens: int | None
    says_stop: bool
    stop: str | None


def _parse_answer(body: bytes) -> _Answer:
    """Raises ValueError for a body that is not an answer of the protocol: one that was cut off, or something else."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text, reason = choice["text"], choice.get("finish_reason")
        # vLLM's name, null for the end token, and SGLang's, whose null says nothing; a number is that of an end token
        stop = choice.get("stop_reason", choice.get("matched_stop"))
        tokens = (answer.get("usage") or {}).get("completion_tokens")
        if not isinstance(text, str) or reason in ABORTED_REASONS:
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        excerpt = body[:QUOTED_BYTES].decode("utf-8", "replace") or "nothing"
        raise ValueError(f"no completion in the answer: {excerpt}") from error
    # JSON may hold half a surrogate pair, which cannot be written to a file
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _Answer(
        text=text,
        reason=reason,
        tokens=tokens if type(tokens) is int else None,
        says_stop="stop_reason" in choice or stop is not None,
        stop=stop if isinstance(stop, str) else None,
    )
