"""The pools of solutions that a reproduction evaluates on: fetched, cut into steps, with right answers, and judged."""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_folder, read_json, write_json
from pqm_fast.data.checks import FormatError, at, check_values, explicit_id, field, typed
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.questions import question_number
from pqm_fast.data.read import BadRecord
from pqm_fast.data.sources import expand, is_pattern, open_source
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.answers import gold_answer, same_answer
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.sample.read_questions import read_questions
from pqm_fast.study.judged_pool import write_judged_pool

POOLS, LEFT_OUT = "pools", "left_out.json"
# As the published evaluation cuts solutions. It writes the number of each step itself, and so do we.
_STEP = re.compile(r"Step \d+:")
_ON_HUB = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)/(.+)")

Answers = Mapping[int, set[str]]
"""The right answers that are known for a question, by its number."""


@dataclass(frozen=True)
class Pools:
    files: dict[str, Path]
    """{name: judged pool}, which `study.judged_pool` reads."""
    left_out: list[str]
    """What is in no pool, and why."""


def prepare_pools(config: ReproduceConfig) -> Pools:
    """The judged pools, which are written if they do not exist yet.

    Raises:
        PQMError: a pool or the answers cannot be read, or there is no answer to a question.
    """
    folder = config.folder / POOLS
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            _write(config, temporary)
    left_out = read_json(folder / LEFT_OUT)
    return Pools({path.stem: path for path in sorted(folder.glob("*.jsonl"))}, left_out)


def _write(config: ReproduceConfig, folder: Path) -> None:
    answers: dict[int, set[str]] = defaultdict(set)
    for question in read_questions(config.answers) if config.answers else ():
        if question.answer is not None:
            answers[question_number(question.text)].add(str(question.answer))
    messages: list[str] = []
    sources: dict[str, str] = {}
    (folder / "cut").mkdir()
    for source in _sources(config.pools):
        name, raws = open_source(source)
        if name in sources:
            raise PQMError(f"{source}: {sources[name]} has this name too; rename one of the files")
        sources[name] = source
        cut = folder / "cut" / f"{name}.jsonl"
        with open(cut, "w", encoding="utf-8") as file:
            for place, raw in raws:
                try:
                    row = cut_into_steps(raw, f"{name}:{place.number}", name, answers)
                except FormatError as error:
                    raise BadRecord(place, error) from None
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        try:
            left_out = write_judged_pool([str(cut)], ReadOptions(), max(config.n), folder / f"{name}.jsonl")
        except PQMError as error:
            raise PQMError(str(error).replace(str(cut), source)) from error
        messages += [message.replace(str(cut), source) for message in left_out]
    shutil.rmtree(folder / "cut")
    write_json(folder / LEFT_OUT, messages)


def cut_into_steps(raw: Any, id: str, policy: str, answers: Answers) -> dict[str, Any]:
    """A question of a pool with its `answer` and the `steps` of each response; `id` and `policy` if it names none.

    Raises `FormatError`.
    """
    if isinstance(raw, FormatError):
        raise raw
    if not isinstance(raw, dict):
        raise FormatError("not an object", "is not a JSON object; give one object per record")
    check_values(raw)
    question = field(raw, "question", str)
    responses = []
    for number, response in enumerate(field(raw, "responses", list), 1):
        with at(f"response {number}"):
            steps = typed(response, "it", dict).get("steps")
            steps = _steps(field(response, "text", str)) if steps is None else steps
            known = {name: response[name] for name in ("model_name", "correct") if response.get(name) is not None}
            responses.append({"steps": steps, "model_name": policy, **known})
    row = {"question_id": explicit_id(raw, "question_id") or id, "question": question, "responses": responses}
    if all("correct" in response for response in responses):
        return row
    return row | {"answer": _answer(raw, question, answers)}


def _steps(text: str) -> list[str]:
    """The steps of a solution, numbered anew; none if there is no text."""
    parts = [part.strip() for part in _STEP.split(text)]
    return [f"Step {number}: {part}" for number, part in enumerate(filter(None, parts), 1)]


def _answer(raw: dict[str, Any], question: str, answers: Answers) -> str:
    if raw.get("answer") is not None:
        return str(raw["answer"])
    known = sorted(answers.get(question_number(question), ()))
    if known and all(same_answer(gold_answer(known[0]), gold_answer(other)) for other in known[1:]):
        return known[0]
    found = f"different right answers ({', '.join(known)})" if known else "no right answer"
    raise FormatError("no answer", f"{found} to {question[:60]!r}; give an `answer`, or its data set with --answers")


def _sources(names: Sequence[str]) -> Iterator[str]:
    """The files of the pools. What is no file, folder or pattern here is fetched from a model on the hub."""
    for name in names:
        on_hub = _ON_HUB.fullmatch(name)
        if Path(name).exists() or is_pattern(name) or on_hub is None:
            yield from expand([name])
        else:
            yield from expand([str(_fetched(name, *on_hub.groups()))])


def _fetched(name: str, model: str, inside: str) -> Path:
    """A file or folder of a model on the hub, in the cache of the hub's library."""
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(model, allow_patterns=[inside, f"{inside}/*"])) / inside
    except Exception as error:  # its errors have no common class
        reason = f"{type(error).__name__}: {error}"
        raise PQMError(
            f"{name}: no such file or folder, and it cannot be fetched from the model {model} on the hub either "
            f"({reason}); check the name and the network"
        ) from error
    if not path.exists():
        raise PQMError(f"{name}: the model {model} on the hub has no file or folder {inside}; check the name")
    return path
