"""Sends an HTTP POST with a limit on its total time and on the size of the reply; it follows no redirect.

urllib's timeout applies to each read, so a server that sends a byte at a time could hold a request for ever; and urllib
reads a reply of any size into memory.
"""

import math
import socket
import ssl
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from time import monotonic, time
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, OpenerDirector, Request, build_opener

MAX_REPLY_BYTES = 64 * 2**20
QUOTED_BYTES = 2000  # the largest part of a reply that a message may quote
LONGEST_RETRY_AFTER = 300.0  # seconds


def make_opener() -> OpenerDirector:
    """The opener that `post` sends requests with. Several threads may share it."""
    context = ssl.create_default_context()
    context.sslsocket_class = _TLSSocket
    return build_opener(_HTTP, _HTTPS(context=context), _NoRedirect)


def post(opener: OpenerDirector, request: Request, timeout: float) -> bytes:
    """The body of the reply.

    Raises:
        OSError, HTTPException: the whole reply did not arrive within `timeout` seconds.
        ValueError: the reply is larger than MAX_REPLY_BYTES.
        HTTPError: the status code is not 2xx.
    """
    with opener.open(request, timeout=timeout) as response:
        body = response.read(MAX_REPLY_BYTES + 1)
    if len(body) > MAX_REPLY_BYTES:
        raise ValueError(f"a reply of more than {MAX_REPLY_BYTES // 2**20} MiB")
    if response.length:  # `read` with a limit does not report a connection that ends too early
        raise IncompleteRead(body, response.length)
    return body


def body_text(error: HTTPError) -> str:
    """The text of the server's reply, or an empty text if it cannot be read."""
    try:
        return error.read(QUOTED_BYTES).decode("utf-8", "replace")
    except (OSError, HTTPException):
        return ""


def retry_after(error: HTTPError) -> float:
    """The seconds that the server asks us to wait, as a number or a date; 0 if it sends neither."""
    text = error.headers.get("Retry-After", "")
    try:
        seconds = float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - time()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


class _WithDeadline:
    """A socket whose timeout is the time left until `deadline`."""

    deadline = math.inf

    def recv_into(self, *arguments: Any) -> int:
        seconds_left = self.deadline - monotonic()
        if seconds_left <= 0:
            raise TimeoutError("no whole reply in time")
        self.settimeout(seconds_left)  # type: ignore[attr-defined]
        return super().recv_into(*arguments)  # type: ignore[misc]


class _Socket(_WithDeadline, socket.socket):
    pass


class _TLSSocket(_WithDeadline, ssl.SSLSocket):
    pass


class _Connection(HTTPConnection):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.deadline = monotonic() + self.timeout  # type: ignore[operator]
        self._create_connection = self._connected

    def _connected(self, *arguments: Any) -> socket.socket:
        plain = socket.create_connection(*arguments)
        with_deadline = _Socket(plain.family, plain.type, plain.proto, plain.detach())
        with_deadline.settimeout(self.timeout)
        with_deadline.deadline = self.deadline
        return with_deadline


class _TLSConnection(_Connection, HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.deadline = self.deadline  # type: ignore[union-attr]


class _HTTP(HTTPHandler):
    def http_open(self, request: Request) -> Any:
        return self.do_open(_Connection, request)


class _HTTPS(HTTPSHandler):
    def https_open(self, request: Request) -> Any:
        return self.do_open(_TLSConnection, request, context=self._context)  # type: ignore[attr-defined]


class _NoRedirect(HTTPRedirectHandler):
    """urllib would follow a redirect with a GET, and send the key to another host."""

    def redirect_request(self, *arguments: Any) -> None:
        return None
