"""`pqm-fast sample`: a Best-of-N pool of solutions of many questions by several policies. Runs can be resumed."""

import json
from array import array
from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file
from pqm_fast.data.dealt import dealt_to
from pqm_fast.data.source_key import source_key
from pqm_fast.data.step_text import split_steps
from pqm_fast.errors import PQMError
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.ranks.journals import Journals, locked_by_first
from pqm_fast.ranks.progress import progress_bar, share_label
from pqm_fast.sample.open_policy import open_policy
from pqm_fast.sample.options import SampleConfig
from pqm_fast.sample.policy import Completion, Request, complete, request_seed
from pqm_fast.sample.policy_name import parse_policy, policy_identity
from pqm_fast.sample.read_questions import Question, read_questions
from pqm_fast.sample.refused import leave_out, of_all_ranks, print_left_out

_MISSING = -1  # the place of a solution that has not been written yet


def sample(config: SampleConfig, ranks: Ranks = ALONE) -> Path:
    """Returns the path written. Raises PQMError for what cannot be sampled; the solutions made by then are kept."""
    if config.n < 1:
        raise PQMError(f"n: {config.n} was given; it must be at least 1")
    names = [parse_policy(text).model for text in config.policy]
    if not names or len(set(names)) < len(names):
        raise PQMError(f"policy: {', '.join(names) or 'none'} given; name at least one, and each model once")
    with locked_by_first(Path(config.out), "sample", ranks):
        return _sample(config, names, ranks)


def _sample(config: SampleConfig, policy_names: list[str], ranks: Ranks) -> Path:
    out = Path(config.out)
    journals = Journals(out, ranks.from_first(lambda: _identity(config)), ranks)
    questions = list(read_questions(config.data))
    # solution s of question q by policy p has the number (p * questions + q) * n + s: its place in the journals
    places = array("q", [_MISSING]) * (len(policy_names) * len(questions) * config.n)

    def take(place: int, row: dict[str, Any]) -> None:
        number, text, finished = row["number"], row["text"], row["finished"]
        valid_number = type(number) is int and 0 <= number < len(places)
        if not valid_number or type(text) is not str or type(finished) is not bool:
            raise TypeError("not the row of a solution")
        places[number] = place

    journals.replay(take)
    with journals.writing():
        own_refused = _sample_missing(config, policy_names, questions, journals, places, ranks)
        refused = of_all_ranks(own_refused, ranks, len(questions), config.data)
        journals.collect()
        if not ranks.first:
            return out
        _write(config, policy_names, questions, journals, places, refused)
    journals.remove()
    print_left_out(refused)
    return out


def _sample_missing(
    config: SampleConfig,
    policy_names: list[str],
    questions: list[Question],
    journals: Journals,
    places: "array[int]",
    ranks: Ranks,
) -> dict[int, str]:
    """Requests every solution of this rank's questions that is not in the journals yet. Returns the questions that a
    policy refused, each with the reason."""
    refused: dict[int, str] = {}
    per_policy = len(questions) * config.n
    own = [q for q, question in enumerate(questions) if dealt_to(ranks, question.text)]

    def num_missing(p: int) -> int:
        firsts = (p * per_policy + q * config.n for q in own)
        return sum(places[first : first + config.n].count(_MISSING) for first in firsts)

    total, missing = len(policy_names) * len(own) * config.n, sum(map(num_missing, range(len(policy_names))))
    with progress_bar(ranks, total, "solution", config.progress, initial=total - missing) as bar:
        for p, name in enumerate(policy_names):
            if not num_missing(p):
                continue  # do not load a model that has nothing left to do
            bar.set_description(", ".join(filter(None, (share_label(ranks), name))))
            policy = open_policy(config.policy[p], config.writing, bar.set_postfix_str, ranks)
            requests = _requests(config, p, name, questions, own, places, refused)
            try:
                for request, completion in complete(policy, partial(next, requests, None)):
                    if isinstance(completion, Completion):
                        row = {"number": request.key, "text": completion.text, "finished": completion.finished}
                        places[request.key] = journals.append(row)
                    else:
                        q = request.key % per_policy // config.n
                        leave_out(refused, q, questions[q], completion, config.skip_refused)
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
    own: list[int],
    places: "array[int]",
    refused: Container[int],
) -> Iterator[Request]:
    first = p * len(questions) * config.n
    for q in own:
        text = questions[q].text
        for s in range(config.n):
            number = first + q * config.n + s
            if places[number] == _MISSING and q not in refused:
                yield Request(text, (), request_seed(config.seed, policy_name, text, s), number)


def _write(
    config: SampleConfig,
    policy_names: list[str],
    questions: list[Question],
    journals: Journals,
    places: "array[int]",
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
                    solution = journals.row(places[(p * len(questions) + q) * config.n + s])
                    reason = "stop" if solution["finished"] else "length"
                    steps = split_steps(solution["text"], separator)
                    responses.append({"steps": steps, "model_name": name, "sample": s, "finish_reason": reason})
            file.write(json.dumps(question.row(responses=responses), ensure_ascii=False) + "\n")


def _identity(config: SampleConfig) -> dict[str, Any]:
    """What the solutions depend on (by more than rounding)."""
    return {
        "policy": [policy_identity(text) for text in config.policy],
        "data": [source_key(name) for name in config.data],
        "n": config.n,
        "seed": config.seed,
        **config.writing.identity(),
    }
