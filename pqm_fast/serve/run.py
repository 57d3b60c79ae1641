"""`pqm-fast serve`: loads the model, listens, and answers until it is told to stop."""

import asyncio
import gc
import os
import resource
import signal
import socket
from time import monotonic
from types import FrameType

import uvicorn

from pqm_fast.common.signals import BURST, Stopped
from pqm_fast.errors import PQMError
from pqm_fast.scoring.remote import TOKEN_VARIABLE
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.serve.app import make_app
from pqm_fast.serve.batcher import Batcher
from pqm_fast.serve.connection import connection_class
from pqm_fast.serve.conversation import Conversation
from pqm_fast.serve.metrics import Metrics
from pqm_fast.serve.options import ServeConfig
from pqm_fast.serve.service import Service

LOCAL = ("127.0.0.1", "::1", "localhost")
BACKLOG = 2048  # connections that the system keeps until they are accepted


def serve(config: ServeConfig) -> None:
    """Answers requests until a signal comes, then finishes those that it has.

    Raises:
        PQMError: the model cannot be loaded or scores nothing, or the address is taken.
        Stopped: after a signal, once the requests are answered.
    """
    server, listener = make_server(config)
    host, port = listener.getsockname()[:2]
    if config.host not in LOCAL and not _token():
        print(f"anybody who reaches {host} may ask this server; a token in {TOKEN_VARIABLE} keeps others out")
    print(f"serving {config.model} on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    gc.freeze()  # or a collection would look through everything that was loaded, and all requests wait for it
    try:
        asyncio.run(server.serve(sockets=[listener]))
    except Stopped as stop:  # uvicorn repeats the signal when it is done
        cut_off = server.config.app.cut_off  # type: ignore[union-attr]
        kept = f"{cut_off:,} requests were cut off" if cut_off else "all requests were answered"
        raise Stopped(stop.number, kept) from None
    finally:
        gc.unfreeze()


class _Server(uvicorn.Server):
    """The first signal asks the server to end, the second ends the process at once, as for other commands."""

    _first_signal = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._first_signal = monotonic()
            super().handle_exit(sig, frame)
        elif monotonic() - self._first_signal > BURST:
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)


def make_server(config: ServeConfig) -> tuple[uvicorn.Server, socket.socket]:
    """The server, and the socket that it listens at. Raises PQMError as `serve` does."""
    listener = _listen(config)
    token = _token()
    batcher = Batcher(_scorer(config), config.gather_ms / 1000, Metrics())
    app = make_app(Service(config, batcher, _conversation(config, batcher.scorer)), token)
    _raise_file_limit()
    server = _Server(
        uvicorn.Config(
            app,
            http=connection_class(config.limits.receive_timeout),
            ws="none",
            access_log=False,
            log_level="warning",
            timeout_keep_alive=int(config.limits.receive_timeout) or 1,
            timeout_graceful_shutdown=int(config.limits.timeout + config.limits.receive_timeout) + 1,
            server_header=False,
        )
    )
    return server, listener


def _listen(config: ServeConfig) -> socket.socket:
    """Before the model is loaded, which takes time: a port that is taken is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PQMError(f"{config.host}:{config.port}: cannot listen there: {reason}; choose another --port") from error
    return listener


def _token() -> str:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise PQMError(f"{TOKEN_VARIABLE}: holds characters that no token can have; set it again")
    return token


def _scorer(config: ServeConfig) -> Scorer:
    """The scorer, after its first score: a model that cannot score is told at the start."""
    scorer = Scorer.from_pretrained(config.model, **config.scoring.loading())
    scorer.score([("1 + 1 = ?", ["2"])])
    return scorer


def _conversation(config: ServeConfig, scorer: Scorer) -> Conversation | str:
    """A text says why there is none by default: the routes that need it answer with that."""
    template = getattr(scorer.encoder, "template", None)
    try:
        return Conversation.of(
            config.conversation, scorer.encoder.tokenizer, template.step_token if template is not None else ""
        )
    except PQMError as error:
        if config.conversation == "chat":
            return str(error)
        raise


def _raise_file_limit() -> None:
    """Each connection takes a file; systems allow a process more than it gets without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
