"""What a server answers if it cannot do what a request asks for."""

from typing import Any

LONGEST_MESSAGE = 600  # characters: what it quotes may be as long as a body


class Problem(Exception):
    """An answer with an error. `status`: the HTTP code; `code`: a word for programs; the message is for people."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} ...")
        self.status, self.code = status, code

    @property
    def body(self) -> dict[str, Any]:
        """In the form of OpenAI's protocol, which its clients show as their message."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "code": self.code, "param": None}}

    @property
    def headers(self) -> dict[str, str]:
        """A client that is told to come back learns when; one that must name itself learns how."""
        if self.status in (429, 503):
            return {"Retry-After": "1"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
