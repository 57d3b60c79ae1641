"""A real HTTP server on 127.0.0.1 that speaks OpenAI's completions protocol for a policy of the arithmetic world.

It can fail in every way that servers fail.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

from pqm_fast.sample.arithmetic_policy import ArithmeticPolicy
from pqm_fast.sample.policy import Completion, Request

# what the handler can do instead of answering
FAULTS = ("late", "429", "500", "503", "drop", "cut", "short", "garbage", "html", "no choices", "null text", "abort")
FAULTS += ("dribble", "dribbled head", "huge", "deep")


def solve(body: dict[str, Any], policy: str = "careless") -> str:
    """The completion of a prompt with the question and each step on a line, sampled with the seed of the request."""
    return completed(body, policy).text


def completed(body: dict[str, Any], policy: str = "careless") -> Completion:
    """As `solve`; of one step, if a line break is a stop text."""
    question, *steps = body["prompt"].removesuffix("\n").split("\n")
    opened = ArithmeticPolicy(policy)
    opened.submit(Request(question, tuple(steps), body["seed"], None, one_step="\n" in body.get("stop", ())))
    [(_, completion)] = opened.collect()
    assert isinstance(completion, Completion)
    return completion


def vllm(body: dict[str, Any]) -> dict[str, Any]:
    """A choice as vLLM writes it: `stop_reason` is the stop text, or null at the end."""
    text, _, tokens, goes_on = completed(body)
    return {"text": text, "finish_reason": "stop", "stop_reason": "\n" if goes_on else None, "usage": tokens}


def sglang(body: dict[str, Any]) -> dict[str, Any]:
    """A choice as SGLang writes it: `matched_stop` is the stop text, or the number of the end token."""
    text, _, tokens, goes_on = completed(body)
    return {"text": text, "finish_reason": "stop", "matched_stop": "\n" if goes_on else 2, "usage": tokens}


def llama_cpp(body: dict[str, Any]) -> dict[str, Any]:
    """A choice that does not say what ended it. One token more of a solution is a line break, or nothing at its end."""
    if body["max_tokens"] > 1:
        text, _, tokens, _ = completed(body)
        return {"text": text, "finish_reason": "stop", "usage": tokens}
    goes_on = completed(body).text != ""
    return {"text": "\n" if goes_on else "", "finish_reason": "length" if goes_on else "stop", "usage": 1}


class Server(ThreadingHTTPServer):
    """`fault(body, attempt)` names the fault in an attempt (from 0) at a request, or None if it succeeds.

    `seen`: every body, in the order of arrival. `attempts` and `served`: how often each arrived, and was answered.
    `most`: the largest number of requests in flight at once.
    """

    daemon_threads = True
    request_queue_size = 128  # with the default of 5, other connections would wait a second

    def __init__(self, answer: Callable[[dict[str, Any]], Any] = solve):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.fault: Callable[[dict[str, Any], int], str | None] = lambda body, attempt: None
        self.delay, self.late, self.retry_after, self.location = 0.0, 3.0, "0", "/"
        self.touched = False
        self.lock = threading.Lock()
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.attempts: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.now = self.most = 0

    @property
    def policy(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1#careless"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up is expected."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:  # no client should
        self.server.touched = True
        self._reply(404, "")

    def do_POST(self) -> None:
        server = self.server
        server.touched = True
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = json.dumps(body, sort_keys=True)
        with server.lock:
            server.now += 1
            server.most = max(server.most, server.now)
            server.seen.append(body)
            server.times.append(time.monotonic())
            server.headers.append(dict(self.headers))
            attempt = server.attempts[key]
            server.attempts[key] += 1
        time.sleep(server.delay)
        fault = "404" if self.path != "/v1/completions" else server.fault(body, attempt)
        with server.lock:
            server.now -= 1  # before the answer: after it, the client may be faster than this line
            server.served[key] += fault is None
        if fault is not None:
            self._fail(fault)
            return
        answer = server.answer(body)
        choice = answer if isinstance(answer, dict) else {"text": answer, "finish_reason": "stop"}
        choice, tokens = {"index": 0, **choice}, choice.get("usage")
        usage = {} if tokens is None else {"usage": {"prompt_tokens": 9, "completion_tokens": tokens}}
        self._reply(200, json.dumps({"object": "text_completion", "choices": [choice], **usage}))

    def _fail(self, fault: str) -> None:
        whole = json.dumps({"choices": [{"text": "never whole", "finish_reason": "stop"}]})
        if fault.isdigit():
            extra = {"Retry-After": self.server.retry_after} if fault in ("429", "503") else {}
            extra |= {"Location": self.server.location} if fault[0] == "3" else {}
            self._reply(int(fault), json.dumps({"error": {"message": f"because of {fault}"}}), extra)
        elif fault == "late":
            time.sleep(self.server.late)
            self._reply(200, whole)
        elif fault == "dribble":  # a byte now and then, each within the timeout
            self._reply(200, "", {}, 10**6)
            self._dribble(b" ")
        elif fault == "dribbled head":
            self._dribble(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif fault == "huge":
            self._reply(200, "", {}, None)
            while True:
                self.wfile.write(bytes(2**20))
        elif fault == "key":  # as servers do if they do not know it
            self._reply(401, f"no such key: {self.headers['Authorization']}")
        elif fault == "key in the reason":
            self.send_response(401, f"no such key: {self.headers['Authorization']}")
            self.end_headers()
            self.close_connection = True
        elif fault == "key in JSON":
            said = json.dumps(f"no such key: {self.headers['Authorization']}").replace("/", "\\/")
            self._reply(401, f"{said} {quote(self.headers['Authorization'], safe='')}")
        elif fault == "drop":
            self.close_connection = True  # not a byte
        elif fault == "cut":  # fewer bytes than the header says
            self._reply(200, whole, {}, len(whole) + 50)
        elif fault == "short":  # the end of the connection ends the answer, too early
            self._reply(200, whole[:25], {}, None)
        else:
            bodies = {"garbage": "{]", "html": "<html>Bad gateway</html>", "no choices": '{"choices": []}'}
            bodies["abort"] = whole.replace("stop", "abort")
            bodies["deep"] = "[" * 200_000
            self._reply(200, bodies.get(fault, '{"choices": [{"text": null}]}'))

    def _dribble(self, part: bytes) -> None:
        while True:
            self.wfile.write(part)
            time.sleep(0.05)

    def _reply(self, code: int, text: str, extra: dict[str, str] | None = None, length: int | None = -1) -> None:
        body = text.encode()
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True
