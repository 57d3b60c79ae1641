"""`pqm-fast score`: the Q-value of every step of whole files, resumable."""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pqm_fast.common.files import atomic_file
from pqm_fast.common.journal import Journal, stored_inputs
from pqm_fast.common.lock import locked
from pqm_fast.data.encode import CHUNK, Encoded, OverLong, chunks
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import Record
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError
from pqm_fast.model.device import dtype_name, pick_device, pick_dtype
from pqm_fast.model.identity import model_key
from pqm_fast.scoring.cut_off import CutOff
from pqm_fast.scoring.options import ScoreConfig, ScoringOptions
from pqm_fast.scoring.scorer import Scorer, Scores
from pqm_fast.scoring.stored import SCORED_BY, model_name


def score(config: ScoreConfig) -> Path:
    """Scores files, whatever their size. Returns the path written; raises PQMError for what cannot be scored."""
    with locked(Path(config.out), "score"):
        return _score(config)


def _score(config: ScoreConfig) -> Path:
    out, skipped, cut = Path(config.out), SkipSummary(), CutOff()
    config = _settled(config, stored_inputs(out))
    journal = Journal(out, _means(config))
    places: dict[str, int] = {}  # where each record stands, by its id

    def done(place: int, row: dict[str, Any]) -> None:
        id, scores = row["id"], row["scores"]
        if not isinstance(id, str) or not isinstance(scores, list):
            raise TypeError("no row of scores")
        cut.add(scores)
        places[id] = place

    journal.replay(done)
    model = model_name(config.model)
    with journal.writing():
        for record, scores in score_records(
            config.model, config.data, config.read, config.scoring, skipped, cut, frozenset(places)
        ):
            places[record.id] = journal.append(_row(record, scores, model))
        ids: Iterable[str] = places
        if journal.damaged_lines:  # what was done again stands at the end
            ids = (record.id for record in read_all(config.data, config.read, SkipSummary()) if record.id in places)
        with atomic_file(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(f"{journal.text(places[id])}\n" for id in ids)
    journal.remove()
    if skipped.total:
        print(skipped)
    if cut.records:
        print(cut)
    return out


def _row(record: Record, scores: Sequence[float | None], model: str) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id, "prompt": record.prompt, "completions": record.steps}
    if record.labels is not None:
        row["labels"] = record.labels
    found = {"scores": scores, SCORED_BY: model}
    return row | found | {k: v for k, v in record.extra.items() if k not in (*row, *found)}


def _means(config: ScoreConfig) -> dict[str, Any]:
    """What the scores depend on, beyond rounding."""
    return {
        "model": str(Path(config.model).resolve()),
        "weights": model_key(Path(config.model)),
        "data": [source_key(name) for name in config.data],
        "read": asdict(config.read) | {"skip_bad": None},  # a run that stopped at a bad record may go on without it
        "max_length": config.scoring.max_length,
        "dtype": config.scoring.dtype,
        "other": asdict(config.scoring.other) if config.scoring.other.given else None,
    }


def _settled(config: ScoreConfig, begun: dict[str, Any] | None) -> ScoreConfig:
    """With the dtype that auto stands for; what was begun goes on in its own."""
    dtype: Any = config.scoring.dtype
    if dtype == "auto" and begun is not None:
        dtype = begun.get("dtype", "auto")
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
) -> Iterator[tuple[Record, Scores]]:
    """Records of files with the scores of their steps, in order, without those whose id is in `done`; each as soon as
    it and those before it are scored.

    All records are read once before the model is loaded: a bad one shows at once, and the bar knows the total.
    Those that do not fit are counted in `cut`. Raises PQMError for what cannot be read or scored; with
    `read.skip_bad` such records are counted in `skipped`.
    """
    names = ", ".join(data)
    total = sum(1 for _ in read_all(data, read, skipped))
    scorer = Scorer.from_pretrained(
        model,
        device=options.device,
        dtype=options.dtype,
        max_length=options.max_length,
        max_tokens=options.max_tokens,
        prefix_tree=options.prefix_tree,
        attention=options.attention,
        other=options.other,
    )
    cut.limit = f"{scorer.encoder.max_length:,} tokens ({'--max-length' if options.max_length else 'the model'})"
    usable = False
    with tqdm(total=total, unit="record", disable=not options.progress) as bar:
        for records in chunks(read_all(data, read, SkipSummary()), CHUNK):
            kept: list[tuple[Record, Encoded | OverLong]] = []
            for one, encoded in zip(records, scorer.encoder(records), strict=True):
                if isinstance(encoded, (Encoded, OverLong)):
                    kept.append((one, encoded))
                elif read.skip_bad:
                    skipped.add(encoded.kind, str(encoded))
                else:
                    raise PQMError(f"{names}: {encoded}") from encoded
            usable = usable or bool(kept)
            bar.update(len(records) - len(kept))
            for one, own in _in_order(scorer, kept, done, bar, names):
                cut.add(own)
                yield one, own
    if not usable:
        raise PQMError(f"{names}: no usable record. {skipped}")


def _in_order(
    scorer: Scorer, kept: list[tuple[Record, Encoded | OverLong]], done: Container[str], bar: tqdm, names: str
) -> Iterator[tuple[Record, Scores]]:
    """The records that are not `done`, each as soon as those before it are scored too."""
    wanted = [one.id not in done for one, _ in kept]
    found: dict[int, Scores] = {}
    batches = scorer.scored(
        [(one.prompt, encoded) for one, encoded in kept],
        wanted.__getitem__,
        lambda i: f"{names}: record {kept[i][0].id}",
    )
    for i, (one, _) in enumerate(kept):
        while wanted[i] and i not in found:
            found |= next(batches)
        if wanted[i]:
            yield one, found.pop(i)
        bar.update()
