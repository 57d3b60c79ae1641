"""`pqm-fast sample`: a Best-of-N pool of solutions of many questions by several policies. Runs can be resumed."""

import json
from array import array
from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pqm_fast.common.files import atomic_file
from pqm_fast.common.journal import Journal
from pqm_fast.common.lock import locked
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.sample.open_policy import open_policy
from pqm_fast.sample.options import SampleConfig
from pqm_fast.sample.policy import Completion, Request, complete, request_seed
from pqm_fast.sample.policy_name import parse_policy, policy_identity
from pqm_fast.sample.prompt import split_steps
from pqm_fast.sample.read_questions import Question, read_questions

_MISSING = -1  # the offset of a solution that has not been written yet


def sample(config: SampleConfig) -> Path:
    """Returns the path written. Raises PQMError for what cannot be sampled; the solutions made by then are kept."""
    if config.n < 1:
        raise PQMError(f"n: {config.n} was given; it must be at least 1")
    names = [parse_policy(text).model for text in config.policy]
    if not names or len(set(names)) < len(names):
        raise PQMError(f"policy: {', '.join(names) or 'none'} given; name at least one, and each model once")
    with locked(Path(config.out), "sample"):
        return _sample(config, names)


def _sample(config: SampleConfig, policy_names: list[str]) -> Path:
    out = Path(config.out)
    journal = Journal(out, _identity(config))
    questions = list(read_questions(config.data))
    # solution s of question q by policy p has the number (p * questions + q) * n + s: its offset in the journal
    offsets = array("q", [_MISSING]) * (len(policy_names) * len(questions) * config.n)

    def replay(offset: int, row: dict[str, Any]) -> None:
        number, text, finished = row["number"], row["text"], row["finished"]
        valid_number = type(number) is int and 0 <= number < len(offsets)
        if not valid_number or type(text) is not str or type(finished) is not bool:
            raise TypeError("not the row of a solution")
        offsets[number] = offset

    journal.replay(replay)
    with journal.writing():
        refused = _sample_missing(config, policy_names, questions, journal, offsets)
        if len(refused) == len(questions):
            raise PQMError(f"{', '.join(config.data)}: no question could be taken, the last: {refused.popitem()[1]}")
        _write(config, policy_names, questions, journal, offsets, refused)
    journal.remove()
    if refused:
        print(f"left out {len(refused):,} questions that were refused, for example: {next(iter(refused.values()))}")
    return out


def _sample_missing(
    config: SampleConfig, policy_names: list[str], questions: list[Question], journal: Journal, offsets: "array[int]"
) -> dict[int, RecordError]:
    """Requests every solution that is not in the journal yet. Returns the questions that a policy refused."""
    refused: dict[int, RecordError] = {}
    per_policy = len(questions) * config.n
    num_missing = offsets.count(_MISSING)
    with tqdm(
        total=len(offsets), initial=len(offsets) - num_missing, unit="solution", disable=not config.progress
    ) as bar:
        for p, name in enumerate(policy_names):
            if _MISSING not in offsets[p * per_policy : (p + 1) * per_policy]:
                continue  # do not load a model that has nothing left to do
            bar.set_description(name)
            policy = open_policy(config.policy[p], config.writing, bar.set_postfix_str)
            requests = _requests(config, p, name, questions, offsets, refused)
            try:
                for request, completion in complete(policy, partial(next, requests, None)):
                    if isinstance(completion, Completion):
                        row = {"number": request.key, "text": completion.text, "finished": completion.finished}
                        offsets[request.key] = journal.append(row)
                    else:
                        q = request.key % per_policy // config.n
                        error = RecordError(f"question {questions[q].id}: {completion}", completion.kind)
                        if not config.skip_refused:
                            raise PQMError(f"{error}; --skip-refused leaves such questions out")
                        refused.setdefault(q, error)
                    bar.update()
            finally:
                policy.close()
            del policy  # frees its memory for the next one
    return refused


def _requests(
    config: SampleConfig,
    p: int,
    policy_name: str,
    questions: list[Question],
    offsets: "array[int]",
    refused: Container[int],
) -> Iterator[Request]:
    first = p * len(questions) * config.n
    for q, question in enumerate(questions):
        for s in range(config.n):
            number = first + q * config.n + s
            if offsets[number] == _MISSING and q not in refused:
                yield Request(question.text, (), request_seed(config.seed, policy_name, question.text, s), number)


def _write(
    config: SampleConfig,
    policy_names: list[str],
    questions: list[Question],
    journal: Journal,
    offsets: "array[int]",
    refused: Container[int],
) -> None:
    """Writes the pool in the order of the questions, whatever the order in which the solutions arrived."""
    separator = config.writing.step_separator
    with atomic_file(Path(config.out)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for q, question in enumerate(questions):
            if q in refused:
                continue
            responses = []
            for p, name in enumerate(policy_names):
                for s in range(config.n):
                    solution = journal.row(offsets[(p * len(questions) + q) * config.n + s])
                    reason = "stop" if solution["finished"] else "length"
                    steps = split_steps(solution["text"], separator)
                    responses.append({"steps": steps, "model_name": name, "sample": s, "finish_reason": reason})
            row: dict[str, Any] = {"id": question.id, "question": question.text}
            if question.answer is not None:
                row["answer"] = question.answer
            file.write(json.dumps(row | {"responses": responses} | question.extra, ensure_ascii=False) + "\n")


def _identity(config: SampleConfig) -> dict[str, Any]:
    """What the solutions depend on (by more than rounding)."""
    return {
        "policy": [policy_identity(text) for text in config.policy],
        "data": [source_key(name) for name in config.data],
        "n": config.n,
        "seed": config.seed,
        **config.writing.identity(),
    }
