"""The gate that every request passes before the application sees it: who may ask, how much, how many at a time.

It also watches the connection: work for a client that has gone is given up.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from pqm_fast.serve.metrics import Metrics
from pqm_fast.serve.options import Limits
from pqm_fast.serve.problem import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health",)  # a load balancer has no token, and must see a busy server too
UNKNOWN = "(unknown)"  # in place of a path that is not ours: each would be a new row of the metrics
SLOW = 408
CLIENT_GONE = 499  # the code under which the metrics count requests whose client has gone
DISCARDED_BODIES = 8  # times the largest body: what is read of a refused request, so that its client reads the answer


class Gate:
    """An ASGI application around `app`.

    Args:
        token: the bearer token that a request needs; "" for none.
        paths: those of `app`, as the metrics name them.
    """

    def __init__(self, app: Application, limits: Limits, token: str, metrics: Metrics, paths: frozenset[str]):
        self.app, self.limits, self.metrics, self.paths = app, limits, metrics, paths
        self.token = token.encode()
        self.requests = self.waiting_bytes = 0  # past the token, until they are answered or refused
        self.cut_off = 0  # requests that were not answered because the server ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end of the server
            await self.app(scope, receive, send)
            return
        body, answer = _Body(receive), _Answer(send)
        path = scope["path"] if scope["path"] in self.paths else UNKNOWN
        try:
            await self._pass(scope, body, answer, path)
        except Problem as problem:
            if problem.status != SLOW and not _header(scope, b"expect"):  # such a client waits before it sends
                await body.discard(self.limits.max_body_mb * 2**20 * DISCARDED_BODIES, self.limits.receive_timeout)
            await answer.problem(problem, scope, body)
        except ConnectionError:
            answer.code = CLIENT_GONE
        except asyncio.CancelledError:
            self.cut_off += 1
            raise
        finally:
            self.metrics.requests.labels(path, answer.code).inc()

    async def _pass(self, scope: Scope, body: "_Body", answer: "_Answer", path: str) -> None:
        if scope["path"] in OPEN_PATHS:
            await self.app(scope, body.replay(), answer.send)
            return
        self._check_token(scope)
        if self.requests >= self.limits.max_requests:
            raise Problem(429, "busy", f"{self.limits.max_requests:,} requests are at work; try again later")
        self.requests += 1
        self.metrics.in_progress.inc()
        try:
            await self._read(scope, body)
            with self.metrics.seconds.labels(path).time():
                await self._answer(scope, body, answer)
        finally:
            self.requests -= 1
            self.metrics.in_progress.dec()
            self.waiting_bytes -= len(body.data)
            body.data.clear()

    def _check_token(self, scope: Scope) -> None:
        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        is_right = scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.token)
        if self.token and not is_right:
            raise Problem(401, "unauthorized", "send the header `Authorization: Bearer TOKEN` with the server's token")

    async def _read(self, scope: Scope, body: "_Body") -> None:
        length, seconds = _header(scope, b"content-length"), self.limits.receive_timeout
        self._check_size(int(length) if length.isdigit() else 0)

        async def read() -> None:
            while not body.complete:
                chunk = await body.chunk()
                body.data += chunk
                self.waiting_bytes += len(chunk)
                self._check_size(len(body.data))

        try:
            await asyncio.wait_for(read(), seconds)
        except asyncio.TimeoutError:
            raise Problem(SLOW, "slow_body", f"the body did not arrive within {seconds:g} s") from None

    def _check_size(self, size: int) -> None:
        if size > self.limits.max_body_mb * 2**20:
            raise Problem(413, "too_large", f"a body may have {self.limits.max_body_mb:g} MiB; send fewer solutions")
        if self.waiting_bytes > self.limits.max_waiting_mb * 2**20:
            raise Problem(429, "busy", "too much text is waiting; try again later")

    async def _answer(self, scope: Scope, body: "_Body", answer: "_Answer") -> None:
        """Runs the application until it has answered, its time is up, or the client has gone."""
        work = asyncio.ensure_future(self.app(scope, body.replay(), answer.send))
        gone = asyncio.ensure_future(body.disconnected())
        try:
            await asyncio.wait({work, gone}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or answer.complete:
                await work
            elif gone.done():
                raise ConnectionError
            else:
                raise Problem(504, "timeout", f"no answer within {self.limits.timeout:g} s; send fewer solutions")
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.wait({work, gone})


class _Body:
    """The body of a request: `data`, as far as it was kept, and whether all of it has arrived."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self.data = bytearray()
        self.complete = False

    async def chunk(self) -> bytes:
        """The next piece. Raises ConnectionError if the client has gone."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        self.complete = not message.get("more_body", False)
        return message.get("body", b"")

    async def discard(self, most: float, seconds: float) -> None:
        """Reads what is left, up to `most` bytes: a client that is still sending does not read the answer."""

        async def read() -> None:
            discarded = 0
            while not self.complete and discarded < most:
                discarded += len(await self.chunk())

        try:
            await asyncio.wait_for(read(), seconds)
        except (asyncio.TimeoutError, ConnectionError):
            return

    def replay(self) -> Receive:
        """A `receive` for the application, which gives it the whole body."""
        messages = [{"type": "http.request", "body": bytes(self.data), "more_body": False}]

        async def receive() -> Message:
            if not messages:
                await asyncio.Event().wait()  # for ever: the gate itself watches for the end of the connection
            return messages.pop()

        return receive

    async def disconnected(self) -> None:
        """Returns when the client has gone, or has its whole answer."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Answer:
    """Passes an answer on. `code`: its HTTP code; `complete`: all of it has been sent."""

    def __init__(self, send: Send):
        self._send = send
        self.code = 500
        self.started = self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.code = True, message["status"]
        await self._send(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def problem(self, problem: Problem, scope: Scope, body: _Body) -> None:
        """Answers with the problem, unless an answer has begun."""
        if self.started:
            return
        close = {} if body.complete else {"Connection": "close"}  # the next request would begin inside this body
        await JSONResponse(problem.body, problem.status, problem.headers | close)(scope, body.replay(), self.send)


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((value for name, value in scope["headers"] if name == wanted), b"")
