"""`pqm-fast score`: writes the Q-value of every step of whole files, and resumes after an interruption."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pqm_fast.common.files import atomic_file
from pqm_fast.common.journal import stored_inputs
from pqm_fast.data.dealt import dealt_to
from pqm_fast.data.encode import Encoded, OverLong
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import CHUNK, SkipSummary, chunks, read_all
from pqm_fast.data.records import Record
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError
from pqm_fast.model.device import dtype_name, pick_device, pick_dtype
from pqm_fast.model.identity import model_key
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.ranks.journals import Journals, locked_by_first
from pqm_fast.ranks.progress import progress_bar
from pqm_fast.scoring.cut_off import CutOff
from pqm_fast.scoring.options import ScoreConfig, ScoringOptions
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.scoring.stored import SCORED_BY, Scores, model_name


def score(config: ScoreConfig, ranks: Ranks = ALONE) -> Path:
    """Scores files of any size. Returns the path written; raises PQMError for what cannot be scored."""
    with locked_by_first(Path(config.out), "score", ranks):
        return _score(config, ranks)


def _score(config: ScoreConfig, ranks: Ranks) -> Path:
    out, skipped, cut = Path(config.out), SkipSummary(), CutOff()
    config, inputs = ranks.from_first(lambda: _with_inputs(config))
    journals = Journals(out, inputs, ranks)
    places: dict[str, int] = {}  # record id -> place of its row in the journals

    def take(place: int, row: dict[str, Any]) -> None:
        id, scores = row["id"], row["scores"]
        if not isinstance(id, str) or not isinstance(scores, list):
            raise TypeError("not a row of scores")
        cut.add(scores)
        places[id] = place

    journals.replay(take)
    model = model_name(config.model)
    with journals.writing():
        for record, scores in score_records(
            config.model, config.data, config.read, config.scoring, skipped, cut, done=frozenset(places), ranks=ranks
        ):
            cut.add(scores)
            places[record.id] = journals.append(_row(record, scores, model))
        journals.collect()
        if not ranks.first:
            return out
        # in the order of the records, whatever the order of the rows: of several ranks, or scored again
        ids = (record.id for record in read_all(config.data, config.read, SkipSummary()) if record.id in places)
        with atomic_file(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(f"{journals.text(places[id])}\n" for id in ids)
    journals.remove()
    if skipped.total:
        print(skipped)
    if cut.records:
        print(cut)
    return out


def _row(record: Record, scores: Scores, model: str) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id, "prompt": record.prompt, "completions": record.steps}
    if record.labels is not None:
        row["labels"] = record.labels
    row |= {"scores": scores, SCORED_BY: model}
    return row | {name: value for name, value in record.extra.items() if name not in row}


def _with_inputs(config: ScoreConfig) -> tuple[ScoreConfig, dict[str, Any]]:
    """The config with a definite dtype, and all that the scores depend on."""
    config = _with_dtype(config, interrupted=stored_inputs(Path(config.out)))
    return config, _scores_depend_on(config)


def _scores_depend_on(config: ScoreConfig) -> dict[str, Any]:
    """All that the scores depend on, beyond rounding."""
    third_party = config.scoring.third_party
    return {
        "model": str(Path(config.model).resolve()),
        "weights": model_key(Path(config.model)),
        "data": [source_key(name) for name in config.data],
        "read": asdict(config.read) | {"skip_bad": None},  # a run that stopped at a bad record may resume without it
        "max_length": config.scoring.max_length,
        "dtype": config.scoring.dtype,
        "other": asdict(third_party) if third_party.is_set else None,
    }


def _with_dtype(config: ScoreConfig, interrupted: dict[str, Any] | None) -> ScoreConfig:
    """The config with a definite dtype in place of auto: that of the interrupted run if there is one."""
    dtype: Any = config.scoring.dtype
    if dtype == "auto" and interrupted is not None:
        dtype = interrupted.get("dtype", "auto")
    if dtype == "auto":
        dtype = dtype_name(pick_dtype("auto", pick_device(config.scoring.device), config.model))
    return replace(config, scoring=replace(config.scoring, dtype=dtype))


def score_records(
    model: str,
    data: Sequence[str],
    read: ReadOptions,
    options: ScoringOptions,
    skipped: SkipSummary,
    cut: CutOff,
    done: Container[str] = (),
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Record, Scores]]:
    """The records of files with the scores of their steps, in order, without those whose id is in `done`. Each is
    yielded as soon as it and the records before it are scored. Of several ranks, each yields its own records.

    All records are read once before the model is loaded, so that a bad record is reported at once and the progress bar
    knows the total. `cut` is told the limit of the context. Raises PQMError for what cannot be read or scored; with
    `read.skip_bad` such records are counted in `skipped`, on every rank those of all.
    """
    names = ", ".join(data)
    ranks.check_device(pick_device(options.device))

    def own(records: Iterator[Record]) -> Iterator[Record]:
        # a question is computed at once where its solutions share tokens
        return (r for r in records if dealt_to(ranks, r.prompt if options.prefix_tree else r.id))

    def checked() -> tuple[int, SkipSummary]:
        unreadable = SkipSummary()
        return sum(1 for _ in own(read_all(data, read, unreadable))), unreadable

    total, unreadable = ranks.from_first(checked)
    skipped.add_all(unreadable)
    scorer = Scorer.from_pretrained(model, **options.loading())
    cut.limit = f"{scorer.encoder.max_length:,} tokens ({'--max-length' if options.max_length else 'the model'})"
    usable, unencodable = False, SkipSummary()
    with progress_bar(ranks, total, "record", options.progress) as bar:
        for records in chunks(own(read_all(data, read, SkipSummary())), CHUNK):
            usable_records: list[tuple[Record, Encoded | OverLong]] = []
            for record, encoded in zip(records, scorer.encoder(records), strict=True):
                if isinstance(encoded, (Encoded, OverLong)):
                    usable_records.append((record, encoded))
                elif read.skip_bad:
                    unencodable.add(encoded.kind, str(encoded))
                else:
                    raise PQMError(f"{names}: {encoded}") from encoded
            usable = usable or bool(usable_records)
            bar.update(len(records) - len(usable_records))
            yield from _scored_in_order(scorer, usable_records, done, bar, names)
    for of_rank in ranks.gather(unencodable):
        skipped.add_all(of_rank)
    if not ranks.any(usable):
        raise PQMError(f"{names}: no usable record. {skipped}")


def _scored_in_order(
    scorer: Scorer, usable_records: list[tuple[Record, Encoded | OverLong]], done: Container[str], bar: tqdm, names: str
) -> Iterator[tuple[Record, Scores]]:
    """The records that are not `done`, each as soon as the records before it are scored too."""
    is_needed = [record.id not in done for record, _ in usable_records]
    scores: dict[int, Scores] = {}
    batches = scorer.score_batches(
        [(record.prompt, encoded) for record, encoded in usable_records],
        needed=is_needed.__getitem__,
        name=lambda i: f"{names}: record {usable_records[i][0].id}",
    )
    for i, (record, _) in enumerate(usable_records):
        while is_needed[i] and i not in scores:
            scores |= next(batches)
        if is_needed[i]:
            yield record, scores.pop(i)
        bar.update()
