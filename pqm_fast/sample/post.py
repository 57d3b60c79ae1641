"""A POST that ends: bounded in time as a whole and in size, and following no redirect.

urllib's timeout is one for each byte, so a server that dribbles could hold a request for ever, and it reads whatever
comes into memory.
"""

import math
import socket
import ssl
from http.client import HTTPConnection, HTTPSConnection, IncompleteRead
from time import monotonic
from typing import Any
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, OpenerDirector, Request, build_opener

MOST_BYTES = 64 * 2**20  # of a reply


def make_opener() -> OpenerDirector:
    """What `post` sends requests with, from several threads if need be."""
    context = ssl.create_default_context()
    context.sslsocket_class = _TLSSocket
    return build_opener(_HTTP, _HTTPS(context=context), _NoRedirect)


def post(opener: OpenerDirector, request: Request, timeout: float) -> bytes:
    """The body of the reply. OSError or HTTPException if it is not there within `timeout` seconds, ValueError if it is
    larger than MOST_BYTES, HTTPError for a code other than 2xx."""
    with opener.open(request, timeout=timeout) as response:
        body = response.read(MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise ValueError(f"a reply of more than {MOST_BYTES // 2**20} MiB")
    if response.length:  # `read` with a limit is silent about a connection that ends too early
        raise IncompleteRead(body, response.length)
    return body


class _Patient:
    """A socket whose timeout is what is left until `deadline`."""

    deadline = math.inf

    def recv_into(self, *arguments: Any) -> int:
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError("no whole reply in time")
        self.settimeout(left)  # type: ignore[attr-defined]
        return super().recv_into(*arguments)  # type: ignore[misc]


class _Socket(_Patient, socket.socket):
    pass


class _TLSSocket(_Patient, ssl.SSLSocket):
    pass


class _Connection(HTTPConnection):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.deadline = monotonic() + self.timeout  # type: ignore[operator]
        self._create_connection = self._connected

    def _connected(self, *arguments: Any) -> socket.socket:
        plain = socket.create_connection(*arguments)
        made = _Socket(plain.family, plain.type, plain.proto, plain.detach())
        made.settimeout(self.timeout)
        made.deadline = self.deadline
        return made


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
    """urllib would follow a redirect with a GET, and take the key to another host."""

    def redirect_request(self, *arguments: Any) -> None:
        return None
