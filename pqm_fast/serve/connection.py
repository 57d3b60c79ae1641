"""The connections of the server: uvicorn's, which besides gives up clients that send nothing, or headers bit by bit,
and those that do not read their answers."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from pqm_fast.serve.problem import Problem


def connection_class(seconds: float) -> type[H11Protocol]:
    """A class of connections that are cut if the headers of a request do not arrive within `seconds` (of the first
    after the connection was made, of a later one after it began), or if nothing of an answer is read for as long."""

    class Connection(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            self.resume_writing()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self._unread or self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.get_write_buffer_size():
                # closing waits for the client to read, which it may never do
                self.loop.call_later(seconds, self._cut_if_unread)

        def _cut_if_unread(self) -> None:
            if self.transport.is_closing() and self.transport.get_write_buffer_size():
                self.transport.abort()

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
