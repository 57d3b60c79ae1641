"""RemoteScorer: the `score` of a Scorer, answered by a running `pqm-fast serve`."""

import json
import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

from pqm_fast.common.credentials import split_credentials
from pqm_fast.common.http_post import body_text, make_opener, post, retry_after
from pqm_fast.errors import PQMError
from pqm_fast.scoring.solutions import records_of
from pqm_fast.scoring.stored import Scores

TOKEN_VARIABLE = "PQM_FAST_TOKEN"  # holds the bearer token, for the server and for its clients
FIRST_WAIT, LONGEST_WAIT = 0.2, 20.0  # seconds between two tries
BUSY_CODES = (429, 503)
SOLUTIONS_OF_A_REQUEST = 256  # a server takes only so many


class RemoteScorer:
    """Scores the steps of solutions through the server at `url`, such as http://127.0.0.1:8100.

    Args:
        url: of the server; a bearer token is in the variable PQM_FAST_TOKEN.
        timeout: seconds for all tries of one question: a server that is busy or not up yet is asked again.
        parallel: questions asked at once.
    """

    def __init__(self, url: str, timeout: float = 600.0, parallel: int = 8):
        public_url, self.credentials = split_credentials(url, TOKEN_VARIABLE)
        self.url, self.timeout, self.parallel = f"{public_url.rstrip('/')}/score", timeout, parallel
        self.opener = make_opener()

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]], *, lenient: bool = False) -> list[Scores]:
        """Q-values of the steps of (question, steps) pairs, in their order; see `Scorer.score`. The solutions of one
        question travel together.

        Raises:
            PQMError: something is not such a pair, or the server does not answer in time, or refuses a solution.
        """
        records = records_of(solutions)
        by_question: dict[str, list[int]] = {}
        for number, record in enumerate(records):
            by_question.setdefault(record.prompt, []).append(number)
        parts = [
            numbers[first : first + SOLUTIONS_OF_A_REQUEST]
            for numbers in by_question.values()
            for first in range(0, len(numbers), SOLUTIONS_OF_A_REQUEST)
        ]
        bodies = [
            {"question": records[part[0]].prompt, "solutions": [records[i].steps for i in part], "lenient": lenient}
            for part in parts
        ]
        scores: list[Scores] = [[] for _ in records]
        with ThreadPoolExecutor(self.parallel) as pool:
            for numbers, answer in zip(parts, pool.map(self._ask, bodies), strict=True):
                for number, steps in zip(numbers, answer, strict=True):
                    scores[number] = steps
        return scores

    def _ask(self, body: dict[str, Any]) -> list[Scores]:
        headers = {"Content-Type": "application/json", "User-Agent": "pqm-fast"}
        if self.credentials.authorization:
            headers["Authorization"] = self.credentials.authorization
        request = Request(self.url, json.dumps(body).encode(), headers)
        deadline, wait = monotonic() + self.timeout, FIRST_WAIT
        while True:
            pause = wait * random.uniform(0.5, 1)
            try:
                answer = post(self.opener, request, max(deadline - monotonic(), 1e-3))
                return _checked(json.loads(answer)["scores"], body["solutions"])
            except HTTPError as error:
                with error:
                    failure = self.credentials.hide(_message(error))
                if error.code not in BUSY_CODES:
                    raise PQMError(f"{self.url}: {failure}") from error
                pause = max(pause, retry_after(error))
            except (ValueError, LookupError, TypeError) as error:
                raise PQMError(f"{self.url}: {error}; is this `pqm-fast serve`?") from error
            except (OSError, HTTPException) as error:
                failure = str(error.reason if isinstance(error, URLError) else error) or type(error).__name__
            if monotonic() + pause >= deadline:
                raise PQMError(f"{self.url}: no answer in {self.timeout:g} s, the last: {failure}; check the server")
            sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)


def _checked(scores: Any, solutions: Sequence[Sequence[str]]) -> list[Scores]:
    """The scores of an answer. Raises ValueError unless there is a finite number, or null, for each step."""
    if list(map(len, scores)) != list(map(len, solutions)) or not all(
        q is None or (isinstance(q, (int, float)) and math.isfinite(q)) for steps in scores for q in steps
    ):
        raise ValueError("its answer does not have a number for each step")
    return scores


def _message(error: HTTPError) -> str:
    """What the server says, or the whole answer of something that is not the server."""
    text = body_text(error)
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"HTTP {error.code}: {text}"
