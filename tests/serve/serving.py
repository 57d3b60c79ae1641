"""A reward server in this process, and requests to it."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests
import tiny
import torch

from pqm_fast.data.encode import Template
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.scoring.options import ModelOptions
from pqm_fast.serve.options import Limits, ServeConfig
from pqm_fast.serve.run import make_server

CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def checkpoint(folder: Path, chat: bool = True, step_token: str = "<|step|>") -> Path:
    """A checkpoint with weights at random, large enough that scores differ."""
    torch.manual_seed(0)
    model = StepQModel.from_pretrained(str(tiny.model_folder(folder / "base", "qwen3")))
    tokenizer = tiny.tokenizer(90)
    tokenizer.chat_template = CHAT if chat else None
    model.fit_vocabulary(tokenizer, step_token)
    with torch.no_grad():
        model.head.weight.mul_(30)
        model.head.bias.fill_(0.3)
    template = Template(step_token=step_token)
    model.save(folder / "run", tokenizer, Recipe(template), torch.float32)
    return folder / "run"


def config(model: Path, limits: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **more: Any):
    loading = ModelOptions(prefix_tree=True, device="cpu", dtype="float32", **options or {})
    return ServeConfig(str(model), port=0, scoring=loading, limits=Limits(**limits or {}), **more)


@contextmanager
def running(settings: ServeConfig) -> Iterator[SimpleNamespace]:
    """`url`, `port`, the uvicorn `server` and its `batcher`; stopped at the end, after what it has."""
    server, listener = make_server(settings)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    gate = server.config.app
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", port=port, server=server, gate=gate, thread=thread)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def post(server: SimpleNamespace, path: str, body: Any, **more: Any) -> requests.Response:
    return requests.post(server.url + path, json=body, timeout=30, **more)


def error(response: requests.Response) -> tuple[int, str]:
    """(HTTP code, word for programs) of an answer that must have the one form of errors."""
    body = response.json()["error"]
    assert set(body) == {"message", "type", "code", "param"}
    assert body["message"]
    assert "Traceback" not in response.text
    return response.status_code, body["code"]


def raw(server: SimpleNamespace, *pieces: bytes, timeout: float = 10) -> socket.socket:
    """A connection on which `pieces` were sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout)
    for piece in pieces:
        connection.sendall(piece)
    return connection


def head(path: str, length: int, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def read_answer(connection: socket.socket) -> tuple[int, Any]:
    """(HTTP code, body) of the one answer on a connection that the server closes."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    begin, _, body = received.partition(b"\r\n\r\n")
    return int(begin.split()[1]), json.loads(body)
