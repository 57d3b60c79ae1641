"""`pqm-fast sample`: solutions of many questions by several policies, as a Best-of-N pool; resumable."""

import json
from array import array
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pqm_fast.common.files import atomic_file
from pqm_fast.common.journal import Journal
from pqm_fast.common.lock import locked
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.sample.policy import (
    Completion,
    PolicyOptions,
    Request,
    complete,
    open_policy,
    parse_policy,
    policy_state,
    request_seed,
)
from pqm_fast.sample.prompt import split_steps
from pqm_fast.sample.questions import Question, read_questions


@dataclass(frozen=True)
class SampleConfig:
    """Sample solutions of questions from one policy or several, for `score`, `annotate` and `evaluate`."""

    policy: tuple[str, ...]
    """Who writes them: model folders or hub ids, http://HOST:PORT/v1#MODEL (a server such as vLLM), arithmetic:NAME."""
    data: tuple[str, ...]
    """Questions: files (JSON lines, JSON, Parquet), folders or patterns of them, hub data set names; each record has
    the question as `question`, `problem` or `prompt`, and its `answer` (or `solution`)."""
    out: str
    """JSON lines to write: a Best-of-N pool. While unfinished, what is done stands in OUT.part, and the same command
    goes on from there."""
    n: int = 16
    """Solutions of each question by each policy."""
    seed: int = 0
    """With the policy's name, the question and the solution's number it decides every solution."""
    skip_refused: bool = False
    """Leave out questions that a policy cannot take (longer than its context, say), with a counted summary, instead of
    stopping at the first."""
    writing: PolicyOptions = field(default_factory=PolicyOptions)
    progress: bool = True
    """Show the progress bar."""


def sample(config: SampleConfig) -> Path:
    """Returns the path written. Raises PQMError for what cannot be sampled; what was done by then is kept."""
    if config.n < 1:
        raise PQMError(f"n: {config.n} was given; it must be at least 1")
    names = [parse_policy(text).model for text in config.policy]
    if not names or len(set(names)) < len(names):
        raise PQMError(f"policy: {', '.join(names) or 'none'} given; name at least one, and each model once")
    with locked(Path(config.out), "sample"):
        return _sample(config, names)


def _sample(config: SampleConfig, names: list[str]) -> Path:
    out = Path(config.out)
    journal = Journal(out, _means(config))
    questions = list(read_questions(config.data))
    # solution s of question q by policy p has number (p * questions + q) * n + s; here is where it stands
    places = array("q", [-1]) * (len(names) * len(questions) * config.n)

    def take(place: int, row: dict[str, Any]) -> None:
        number, text, finished = row["number"], row["text"], row["finished"]
        if (
            type(number) is not int
            or not 0 <= number < len(places)
            or type(text) is not str
            or type(finished) is not bool
        ):
            raise TypeError("no row of a solution")
        places[number] = place

    journal.replay(take)
    with journal.writing():
        refused = _fill(config, names, questions, journal, places)
        if len(refused) == len(questions):
            raise PQMError(f"{', '.join(config.data)}: no question could be taken, the last: {refused.popitem()[1]}")
        _write(config, names, questions, journal, places, refused)
    journal.remove()
    if refused:
        print(f"left out {len(refused):,} questions that were refused, for example: {next(iter(refused.values()))}")
    return out


def _fill(
    config: SampleConfig, names: list[str], questions: list[Question], journal: Journal, places: "array[int]"
) -> dict[int, RecordError]:
    """Asks for every solution that is not there yet. Returns the questions that a policy refused."""
    refused: dict[int, RecordError] = {}
    share = len(questions) * config.n
    missing = places.count(-1)
    with tqdm(total=len(places), initial=len(places) - missing, unit="solution", disable=not config.progress) as bar:
        for p, name in enumerate(names):
            if -1 not in places[p * share : (p + 1) * share]:
                continue  # a model that has nothing left to do is not loaded
            bar.set_description(name)
            policy = open_policy(config.policy[p], config.writing, bar.set_postfix_str)
            requests = _requests(config, p, name, questions, places, refused)
            try:
                for request, completion in complete(policy, partial(next, requests, None)):
                    if isinstance(completion, Completion):
                        row = {"number": request.key, "text": completion.text, "finished": completion.finished}
                        places[request.key] = journal.append(row)
                    else:
                        q = request.key % share // config.n
                        error = RecordError(f"question {questions[q].id}: {completion}", completion.kind)
                        if not config.skip_refused:
                            raise PQMError(f"{error}; --skip-refused leaves such questions out")
                        refused.setdefault(q, error)
                    bar.update()
            finally:
                policy.close()
            del policy  # its memory is for the next one
    return refused


def _requests(
    config: SampleConfig,
    p: int,
    name: str,
    questions: list[Question],
    places: "array[int]",
    refused: Container[int],
) -> Iterator[Request]:
    first = p * len(questions) * config.n
    for q, question in enumerate(questions):
        for s in range(config.n):
            number = first + q * config.n + s
            if places[number] < 0 and q not in refused:
                yield Request(question.text, (), request_seed(config.seed, name, question.text, s), number)


def _write(
    config: SampleConfig,
    names: list[str],
    questions: list[Question],
    journal: Journal,
    places: "array[int]",
    refused: Container[int],
) -> None:
    """The pool in the order of the questions, whatever order the solutions came in."""
    separator = config.writing.step_separator
    with atomic_file(Path(config.out)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for q, question in enumerate(questions):
            if q in refused:
                continue
            responses = []
            for p, name in enumerate(names):
                for s in range(config.n):
                    written = journal.row(places[(p * len(questions) + q) * config.n + s])
                    reason = "stop" if written["finished"] else "length"
                    steps = split_steps(written["text"], separator)
                    responses.append({"steps": steps, "model_name": name, "sample": s, "finish_reason": reason})
            row: dict[str, Any] = {"id": question.id, "question": question.text}
            if question.answer is not None:
                row["answer"] = question.answer
            file.write(json.dumps(row | {"responses": responses} | question.extra, ensure_ascii=False) + "\n")


def _means(config: SampleConfig) -> dict[str, Any]:
    """What the solutions depend on, beyond rounding."""
    return {
        "policy": [policy_state(text) for text in config.policy],
        "data": [source_key(name) for name in config.data],
        "n": config.n,
        "seed": config.seed,
        **config.writing.decides(),
    }
