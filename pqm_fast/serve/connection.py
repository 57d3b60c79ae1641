"""The connections of the server: uvicorn's, which besides gives up those that send nothing, or headers bit by bit."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from pqm_fast.serve.problem import Problem


def connection_class(seconds: float) -> type[H11Protocol]:
    """A class of connections that are closed unless the headers of a request arrive within `seconds`: of the first
    after the connection was made, of a later one after it began."""

    class Connection(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            super().connection_lost(exc)

        def _needs_headers(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _watch(self) -> None:
            if not self._needs_headers():
                self._stop_watching()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self._give_up)

        def _stop_watching(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            self._deadline = None
            if self._needs_headers():
                self.transport.abort()

        def send_400_response(self, msg: str) -> None:
            body = json.dumps(Problem(400, "not_http", msg).body).encode()
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            self.transport.close()

    return Connection
