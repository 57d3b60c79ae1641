"""Sends requests to a server from several clients at once, each on a connection of its own, and times every answer."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Load:
    """What became of the requests. `seconds` [requests]: latencies; `answers` [requests]: bodies, None for a request
    that was lost; `failures`: what was wrong with those."""

    wall: float
    seconds: list[float]
    answers: list[Any]
    failures: list[str] = field(default_factory=list)


def send(url: str, bodies: Sequence[bytes], clients: int, timeout: float = 300.0) -> Load:
    """Posts every body to /score of the server at `url`; a client sends the next one when it has its answer."""
    host = urlsplit(url).netloc
    load = Load(0.0, [0.0] * len(bodies), [None] * len(bodies))
    numbers = iter(range(len(bodies)))
    lock = threading.Lock()

    def client() -> None:
        connection = HTTPConnection(host, timeout=timeout)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                connection.close()
                return
            began = perf_counter()
            try:
                connection.request("POST", "/score", bodies[number], {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
                if response.status != 200:
                    raise ValueError(f"HTTP {response.status}: {answer}")
                load.answers[number] = answer
            except (OSError, HTTPException, ValueError) as error:
                load.failures.append(f"request {number}: {error!r}")
                connection.close()
            load.seconds[number] = perf_counter() - began

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.wall = perf_counter() - began
    return load
