"""A vLLM server for a checkpoint, started by the command that a model card shows."""

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from pqm_fast.publish.serving import served

VLLM = Path(os.environ.get("VLLM") or Path(__file__).parents[2] / ".venv-serving" / "bin" / "vllm")
SECONDS = 300  # that a server may take to start


@contextmanager
def vllm_server(
    checkpoint: Path, log: Path, port: int, dtype: str = "float32", options: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yields the address of a server, once it is up."""
    program, *words = shlex.split(served(checkpoint).vllm)
    assert program == "vllm"
    command = [VLLM, *words, "--dtype", dtype, "--enforce-eager", "--port", str(port), *options]
    without_ours = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    environment = without_ours | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}  # in GiB
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(server, address, log)
            yield address
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urlopen(f"{address}/health", timeout=5).close()
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(1)
        else:
            return
    raise RuntimeError(f"vLLM is not up:\n{log.read_text()[-4000:]}")


def pooled(address: str, checkpoint: Path, ids: list[int]) -> list[float]:
    """The values that vLLM returns for the tokens `ids`: those of the step tokens, or of all without a step token."""
    body: dict[str, Any] = {"model": str(checkpoint), "task": "token_classify", "input": ids}
    request = Request(f"{address}/pooling", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        return [q for [q] in json.load(answer)["data"][0]["data"]]
