"""`pqm-fast annotate`: a label for every step, from rollouts that a policy writes behind it; resumable."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from pqm_fast.common.files import atomic_file
from pqm_fast.common.journal import Journal
from pqm_fast.common.lock import locked
from pqm_fast.data.candidate import known_answer
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import Record
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.sample.policy import PolicyOptions, policy_state
from pqm_fast.sample.rollouts import Rollouts
from pqm_fast.sample.search import Label, Search, step_labels


@dataclass(frozen=True)
class AnnotateConfig:
    """Label steps by Monte Carlo: a step is as good as the share of solutions going on from it that end right."""

    policy: str
    """Who goes on from each prefix: a model folder or hub id, http://HOST:PORT/v1#MODEL (a server such as vLLM), or
    arithmetic:NAME."""
    data: tuple[str, ...]
    """Solutions with the right `answer` of their question, with or without labels: what `sample` writes, or any other
    records (files, folders or patterns of them, hub data set names)."""
    out: str
    """JSON lines to write: labelled records. While unfinished, what is done stands in OUT.part, and the same command
    goes on from there."""
    rollouts: int = 8
    """Solutions written behind each prefix that is measured."""
    label: Label = "hard"
    """hard: 1 if any rollout ends right, else 0. soft: the share that does."""
    search: Search = "full"
    """full: measure every prefix. binary: find the first step from which no rollout ends right, in fewer rollouts,
    taking it that no later prefix is better; steps after it get no label."""
    seed: int = 0
    """With the policy's name, the question, the prefix and the rollout's number it decides every rollout."""
    read: ReadOptions = field(default_factory=ReadOptions)
    writing: PolicyOptions = field(default_factory=PolicyOptions)
    progress: bool = True
    """Show the progress bar."""

    def __post_init__(self) -> None:
        if self.rollouts < 1:
            raise PQMError(f"rollouts: {self.rollouts} was given; it must be at least 1")
        if self.search == "binary" and self.label == "soft":
            raise PQMError("label soft: binary search measures too few prefixes for it; use --search full")


def annotate(config: AnnotateConfig) -> Path:
    """Returns the path written. Raises PQMError for what cannot be labelled; what was done by then is kept."""
    with locked(Path(config.out), "annotate"):
        return _annotate(config)


def _annotate(config: AnnotateConfig) -> Path:
    means = {
        "policy": policy_state(config.policy),
        "data": [source_key(name) for name in config.data],
        "read": asdict(config.read) | {"skip_bad": None},
        "rollouts": config.rollouts,
        "search": config.search,
        "seed": config.seed,
        **config.writing.decides(),
    }
    journal = Journal(Path(config.out), means)
    skipped = SkipSummary()
    total = sum(1 for _ in _records(config, skipped))  # a bad record shows before the first rollout
    if not total:
        raise PQMError(f"{', '.join(config.data)}: no usable record. {skipped}")
    with journal.kept():
        rollouts = Rollouts(config, journal)
        with tqdm(total=total, unit="record", disable=not config.progress) as bar:
            rollouts.measure(_records(config, SkipSummary()), bar)
        summary = _write(config, rollouts, skipped)
    journal.remove()
    if skipped.total:
        print(skipped)
    print(summary)
    return Path(config.out)


def _records(config: AnnotateConfig, skipped: SkipSummary) -> Iterator[Record]:
    """The records that have an answer."""
    for record in read_all(config.data, config.read, skipped):
        try:
            known_answer(record)
        except RecordError as error:
            if not config.read.skip_bad:
                raise PQMError(f"{', '.join(config.data)}: {error}") from error
            skipped.add(error.kind, str(error))
            continue
        yield record


def _write(config: AnnotateConfig, rollouts: Rollouts, skipped: SkipSummary) -> str:
    """Writes the labelled records in the order read, and returns one line on them."""
    written = hopeless = 0
    with atomic_file(Path(config.out)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in _records(config, SkipSummary()):
            try:
                right, _ = rollouts.right(record)
            except RecordError as error:
                skipped.add(error.kind, str(error))
                continue
            steps = range(1, len(record.steps) + 1)
            own = rollouts.own_answer(record)
            counts = {t: 1 if t in own else config.rollouts for t in right}
            row = {
                "id": record.id,
                "prompt": record.prompt,
                "completions": record.steps,
                "labels": step_labels(len(steps), right, counts, config.search, config.label),
                "rollouts": [counts.get(t) for t in steps],
                "rollouts_right": [right.get(t) for t in steps],
            }
            extra = {name: value for name, value in record.extra.items() if name not in row}
            file.write(json.dumps(row | extra, ensure_ascii=False) + "\n")
            written += 1
            hopeless += not any(right.values())
        if not written:
            raise PQMError(f"{', '.join(config.data)}: no usable record. {skipped}")
    measured = sum(len(prefix.verdicts) for prefix in rollouts.prefixes.values())
    return (
        f"{written:,} records, {measured:,} rollouts behind {len(rollouts.prefixes):,} prefixes; for {hopeless:,} "
        "records nothing ended right: more rollouts or a stronger policy may find a way"
    )
