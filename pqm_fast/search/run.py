"""`pqm-fast search`: a pool of solutions that a model has guided. Runs can be resumed."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file, file_to_write, write_json
from pqm_fast.common.journal import stored_inputs
from pqm_fast.common.names import redacted
from pqm_fast.data.dealt import dealt_to
from pqm_fast.data.source_key import source_key
from pqm_fast.data.sources import base_and_split, expand
from pqm_fast.errors import PQMError
from pqm_fast.model.device import dtype_name, pick_device, pick_dtype
from pqm_fast.model.identity import model_key
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.ranks.journals import Journals, locked_by_first
from pqm_fast.ranks.progress import progress_bar
from pqm_fast.sample.open_policy import open_policy
from pqm_fast.sample.policy import Policy
from pqm_fast.sample.policy_name import parse_policy, policy_identity
from pqm_fast.sample.read_questions import Question, read_questions
from pqm_fast.sample.refused import of_all_ranks, print_left_out
from pqm_fast.scoring.open_scorer import is_server, open_scorer
from pqm_fast.scoring.stored import SCORED_BY, model_name
from pqm_fast.scoring.third_party import ThirdPartyPRM
from pqm_fast.search.figures import figures, table
from pqm_fast.search.methods import Samples, Search
from pqm_fast.search.options import SearchConfig
from pqm_fast.search.rounds import Rounds
from pqm_fast.search.solution import Solution
from pqm_fast.search.store import Store


def search(config: SearchConfig, ranks: Ranks = ALONE) -> Path:
    """Returns the path written, and prints what the search found. Raises PQMError for what cannot be searched; what is
    done by then is kept."""
    if config.result:
        _check_result(file_to_write(Path(config.result)), config)
    with locked_by_first(Path(config.out), "search", ranks):
        return _search(config, ranks)


def _check_result(result: Path, config: SearchConfig) -> None:
    """Raises PQMError if the figures would replace the pool, its journals or the questions."""
    result, out = result.resolve(), Path(config.out).resolve()
    is_journal = result.parent == out.parent and result.name.startswith(f"{out.name}.part")
    if result == out or is_journal:
        raise PQMError(f"result: {config.result} is the file of --out, or its journal; name another file")
    if result in [Path(base_and_split(source)[0]).resolve() for source in expand(config.data)]:
        raise PQMError(f"result: {config.result} is a file of --data, which it would replace; name another file")


def _search(config: SearchConfig, ranks: Ranks) -> Path:
    out, name = Path(config.out), parse_policy(config.policy).model
    ranks.check_device(pick_device(config.writing.device))
    config, inputs = ranks.from_first(lambda: _with_inputs(config))
    journals = Journals(out, inputs, ranks)
    questions = list(read_questions(config.data))
    store = Store(journals, len(questions))
    with journals.writing():
        own_refused = _search_missing(config, name, questions, store, ranks)
        refused = of_all_ranks(own_refused, ranks, len(questions), config.data)
        journals.collect()
        if not ranks.first:
            return out
        with atomic_file(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for q in range(len(questions)):
                if q not in refused:
                    file.write(json.dumps(store.row(q), ensure_ascii=False) + "\n")
    journals.remove()
    print_left_out(refused)
    found = figures(out, config.aggregate)
    print(table(found))
    if config.result:
        write_json(Path(config.result), found)
    return out


def _search_missing(
    config: SearchConfig, name: str, questions: list[Question], store: Store, ranks: Ranks
) -> dict[int, str]:
    """Searches every question of this rank whose row is not stored yet. Returns the questions that the policy refused,
    each with the reason."""
    refused: dict[int, str] = {}
    own = [q for q, question in enumerate(questions) if dealt_to(ranks, question.text)]
    missing = {q for q in own if q not in store.rows}
    with (
        progress_bar(ranks, len(own), "question", config.progress, initial=len(own) - len(missing)) as bar,
        ExitStack() as stack,
    ):

        @cache
        def policy() -> Policy:
            opened = open_policy(config.policy, config.writing, bar.set_postfix_str, ranks)
            stack.callback(opened.close)
            return opened

        @cache
        def scorer() -> Any:
            return open_scorer(
                config.model,
                device=config.writing.device,
                dtype=config.model_dtype,
                max_tokens=config.max_tokens,
                prefix_tree=True,
                third_party=ThirdPartyPRM(config.preset),
            )

        rounds = Rounds(config, name, policy, scorer, store, bar.set_postfix_str)
        for group in _groups(own, config.together):
            searches = {q: Search(config) for q in group if q in missing}
            samples: dict[int, Samples] = {}
            refused |= rounds.run("search", [(q, questions[q], s) for q, s in searches.items()])
            if config.compare:
                samples = {q: Samples(s.written) for q, s in searches.items() if q not in refused}
                refused |= rounds.run("samples", [(q, questions[q], s) for q, s in samples.items()])
            for q, searched in searches.items():
                if q not in refused:
                    parts = {config.method: searched, "samples": samples.get(q)}
                    store.keep_row(q, _row(config, name, questions[q], parts))
            bar.update(len(searches))
    return refused


def _groups(own: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """`own` in runs of `size`, the same in every run of the command, whatever is done."""
    return (own[i : i + size] for i in range(0, len(own), size))


def _row(
    config: SearchConfig, name: str, question: Question, parts: dict[str, Search | Samples | None]
) -> dict[str, Any]:
    """The row of a question in the pool, with the solutions of each part."""
    written = {method: part for method, part in parts.items() if part is not None}
    tokens = {method: part.written for method, part in written.items()}
    responses = [
        _response(solution, method, name if method == "samples" else f"{name} {method}", s)
        for method, part in written.items()
        for s, solution in enumerate(part.solutions())
    ]
    return question.row(**{SCORED_BY: _scored_by(config), "tokens_written": tokens, "responses": responses})


def _response(solution: Solution, method: str, policy: str, number: int) -> dict[str, Any]:
    scores = list(solution.scores)
    if solution.end == "length":
        scores[-1] = None  # what follows its last step is not known: it is never preferred
    return {
        "steps": solution.steps,
        "scores": scores,
        "model_name": policy,
        "method": method,
        "sample": number,
        "tokens": solution.tokens,
        "finish_reason": solution.end,
    }


def _scored_by(config: SearchConfig) -> str:
    return redacted(config.model) if is_server(config.model) else model_name(config.model)


def _with_inputs(config: SearchConfig) -> tuple[SearchConfig, dict[str, Any]]:
    """The config with a definite dtype of the model, that of an interrupted run if there is one; and all that the pool
    depends on. Raises PQMError for a preset of a server."""
    if is_server(config.model):
        if config.preset != "none":
            raise PQMError("preset: the server of --model knows which model it serves; leave out --preset")
    elif config.model_dtype == "auto":
        dtype: Any = (stored_inputs(Path(config.out)) or {}).get("model_dtype", "auto")
        if dtype == "auto":
            dtype = dtype_name(pick_dtype("auto", pick_device(config.writing.device), config.model))
        config = replace(config, model_dtype=dtype)
    names = (
        "preset",
        "method",
        "n",
        "beam_width",
        "budget_tokens",
        "max_steps",
        "aggregate",
        "distinct",
        "compare",
        "seed",
    )
    return config, {
        "policy": policy_identity(config.policy),
        "model": [_scored_by(config), *model_key(Path(config.model))],
        "data": [source_key(name) for name in config.data],
        **{name: getattr(config, name) for name in (*names, "together", "max_tokens", "model_dtype")},
        **config.writing.identity(),
    }
