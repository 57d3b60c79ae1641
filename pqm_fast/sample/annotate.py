"""`pqm-fast annotate`: a label for every step, from rollouts that a policy writes from it. Runs can be resumed."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file
from pqm_fast.data.candidate import known_answer
from pqm_fast.data.dealt import dealt_to
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import Record
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.ranks.journals import Journals, locked_by_first
from pqm_fast.ranks.progress import progress_bar
from pqm_fast.sample.options import AnnotateConfig
from pqm_fast.sample.policy_name import policy_identity
from pqm_fast.sample.prefix_search import labels_from_rollouts
from pqm_fast.sample.rollouts import Rollouts


def annotate(config: AnnotateConfig, ranks: Ranks = ALONE) -> Path:
    """Returns the path written. Raises PQMError for what cannot be labelled; the rollouts made by then are kept."""
    with locked_by_first(Path(config.out), "annotate", ranks):
        return _annotate(config, ranks)


def _annotate(config: AnnotateConfig, ranks: Ranks) -> Path:
    out, skipped = Path(config.out), SkipSummary()
    journals = Journals(out, ranks.from_first(lambda: _identity(config)), ranks)

    def own(records: Iterator[Record]) -> Iterator[Record]:
        return (record for record in records if dealt_to(ranks, record.prompt))  # they may share rollouts

    def checked() -> int:
        """The number of records of rank 0. Reports a bad record before the first rollout."""
        is_own = [dealt_to(ranks, record.prompt) for record in _records(config, skipped)]
        if not is_own:
            raise PQMError(f"{', '.join(config.data)}: no usable record. {skipped}")
        return sum(is_own)

    total = ranks.from_first(checked)
    with journals.writing():
        rollouts = Rollouts(config, journals, ranks)
        with progress_bar(ranks, total, "record", config.progress) as bar:
            rollouts.measure(own(_records(config, SkipSummary())), bar)
        rollouts.collect()
        if not ranks.first:
            return out
        summary = _write(config, rollouts, skipped)
    journals.remove()
    if skipped.total:
        print(skipped)
    print(summary)
    return out


def _identity(config: AnnotateConfig) -> dict[str, Any]:
    """What the rollouts depend on."""
    return {
        "policy": policy_identity(config.policy),
        "data": [source_key(name) for name in config.data],
        "read": asdict(config.read) | {"skip_bad": None},
        "rollouts": config.rollouts,
        "search": config.search,
        "seed": config.seed,
        **config.writing.identity(),
    }


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
    """Writes the labelled records in the order in which they were read. Returns a one-line summary."""
    num_written = num_hopeless = 0
    with atomic_file(Path(config.out)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in _records(config, SkipSummary()):
            try:
                right_counts, _ = rollouts.right_counts(record)
            except RecordError as error:
                skipped.add(error.kind, str(error))
                continue
            steps = range(1, len(record.steps) + 1)
            whole_solution = rollouts.whole_solution(record)
            rollout_counts = {t: 1 if t in whole_solution else config.rollouts for t in right_counts}
            labels = labels_from_rollouts(len(steps), right_counts, rollout_counts, config.search, config.label)
            row = {
                "id": record.id,
                "prompt": record.prompt,
                "completions": record.steps,
                "labels": labels,
                "rollouts": [rollout_counts.get(t) for t in steps],
                "rollouts_right": [right_counts.get(t) for t in steps],
            }
            extra = {name: value for name, value in record.extra.items() if name not in row}
            file.write(json.dumps(row | extra, ensure_ascii=False) + "\n")
            num_written += 1
            num_hopeless += not any(right_counts.values())
        if not num_written:
            raise PQMError(f"{', '.join(config.data)}: no usable record. {skipped}")
    measured = sum(len(prefix.verdicts) for prefix in rollouts.prefixes.values())
    return (
        f"{num_written:,} records, {measured:,} rollouts of {len(rollouts.prefixes):,} prefixes; nothing ended right "
        f"for {num_hopeless:,} records: more rollouts or a stronger policy may help"
    )
