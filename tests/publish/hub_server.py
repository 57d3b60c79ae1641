"""A real HTTP server on 127.0.0.1 in the place of the Hugging Face hub, which keeps what is uploaded."""

import json
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """`files`: (repository, branch) -> file -> contents. `repos`: name -> whether it is private.

    `refuse`: a code to answer every request with; the answer repeats the token.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.repos: dict[str, bool] = {}
        self.tokens: set[str] = set()
        self.refuse: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuse is not None:
            self._reply({"error": f"not for {self.headers['Authorization']}"}, self.server.refuse)
            return
        match self.path.removeprefix("/api/").split("/"):
            case ["repos", "create"]:
                asked = json.loads(body)
                name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
                exists = name in self.server.repos
                if not exists:
                    self.server.repos[name] = asked.get("visibility") == "private"
                self._reply({"url": f"{self.server.address}/{name}"}, 409 if exists else 200)
            case ["validate-yaml"]:
                self._reply({"errors": [], "warnings": []})
            case ["models", owner, name, "branch", branch]:
                self.server.files[f"{owner}/{name}", branch] = {}
                self._reply({})
            case ["models", owner, name, "preupload", branch]:
                assert branch == "main" or (f"{owner}/{name}", branch) in self.server.files
                paths = [file["path"] for file in json.loads(body)["files"]]
                self._reply(
                    {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
                )
            case ["models", owner, name, "commit", branch]:
                files = self.server.files.setdefault((f"{owner}/{name}", branch), {})
                rows = [json.loads(line) for line in body.splitlines()]
                files |= {r["value"]["path"]: b64decode(r["value"]["content"]) for r in rows if r["key"] == "file"}
                self._reply({"commitUrl": f"{self.server.address}/{owner}/{name}/commit/1", "commitOid": "1"})
            case _:
                self._reply({"error": f"unknown: {self.path}"}, 404)

    def _reply(self, value: dict[str, Any], code: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
