"""Q-values for solutions: `Scorer` for Python, `score` for files."""

import json
import math
import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from tqdm import tqdm

from pqm_fast.data.dataset import CHUNK, chunks
from pqm_fast.data.encode import Encoded, Encoder
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.pack import Trajectory, pack, plan_batches
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.model import Recipe, StepQModel
from pqm_fast.pretrained import load_tokenizer, pick_device

Scores = list[float | None]
DType = Literal["auto", "float32", "bfloat16"]


class Scorer:
    """Scores steps with a trained checkpoint, under the template that the checkpoint was trained with."""

    def __init__(self, model: StepQModel, encoder: Encoder, max_tokens: int = 16384):
        self.model, self.encoder, self.max_tokens = model.eval(), encoder, max_tokens

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: DType = "auto",
        max_length: int | None = None,
        max_tokens: int = 16384,
    ) -> "Scorer":
        """`dtype` of weights and computation: float32 on a CPU, bfloat16 on a GPU by default. `max_length`: longest
        solution in tokens (default: the model's context); `max_tokens`: of one forward pass.

        Raises PQMError if `path` is not a checkpoint of pqm-fast, and for options that it cannot be used with.
        """
        where = pick_device(device)
        if max_tokens < 1:
            raise PQMError(f"max_tokens: {max_tokens} was given; it must be at least 1")
        kind = {"auto": torch.bfloat16 if where.type == "cuda" else torch.float32}.get(dtype) or getattr(torch, dtype)
        notes: list[str] = []
        model = StepQModel.from_pretrained(os.fspath(path), dtype=kind, notes=notes)
        recipe = Recipe.from_config(model.config, os.fspath(path))
        if notes:  # a new head or random weights
            raise PQMError(f"{path}: not a whole checkpoint: {'; '.join(notes)}")
        length = model.context if max_length is None else max_length
        if not 1 <= length <= model.context:
            raise PQMError(f"max_length: {length} was given; the model of {path} takes 1 to {model.context} tokens")
        encoder = Encoder(load_tokenizer(os.fspath(path)), recipe.template, length)
        return cls(model.to(where), encoder, max_tokens)

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> list[Scores]:
        """Q-values of the steps of (question, steps) pairs, in the order given; packed inside.

        A step beyond the context gets None. Raises RecordError if a question alone is too long or a text holds the
        step token.
        """
        records = [Record(f"solution {i}", q, list(steps)) for i, (q, steps) in enumerate(solutions)]
        encoded = self.encoder(records)
        for found in encoded:
            if isinstance(found, RecordError):
                raise found
        return self.score_encoded([e for e in encoded if isinstance(e, Encoded)])

    @torch.no_grad()
    def score_encoded(self, solutions: Sequence[Encoded]) -> list[Scores]:
        """The same for what the encoder gave."""
        scores: list[Scores] = [[] for _ in solutions]
        lengths = np.array([len(s.input_ids) for s in solutions], dtype=np.int64)
        budget = max(self.max_tokens, int(lengths.max(initial=0)))
        for members in plan_batches(lengths, budget, shuffle=False):
            batch = pack(((i, _unlabelled(solutions[i])) for i in members), labelled_only=False)
            q = self.model.scores(batch.to(self.model.device)).cpu().numpy()
            for i, own in zip(members, np.split(q, batch.cu_steps[1:-1].tolist()), strict=True):
                scores[i] = [*own.tolist(), *[None] * solutions[i].steps_cut]
        return scores


def _unlabelled(solution: Encoded) -> Trajectory:
    return Trajectory(
        solution.input_ids, solution.step_index, np.full(len(solution.step_index), np.nan, dtype=np.float32)
    )


class ScoreOptions(Protocol):
    """The options that scoring records takes, whichever command it runs under."""

    @property
    def model(self) -> str | None: ...
    @property
    def data(self) -> tuple[str, ...]: ...
    @property
    def read(self) -> ReadOptions: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def progress(self) -> bool: ...


def score_records(
    options: ScoreOptions, skipped: SkipSummary, done: Container[str] = ()
) -> Iterator[tuple[Record, Scores]]:
    """Records of files with the scores of their steps, in order, without those whose id is in `done`.

    All records are read once before the model is loaded: a bad one shows at once, and the bar knows the total.
    Raises PQMError for what cannot be read or scored; with `read.skip_bad` such records are counted in `skipped`.
    """
    names = ", ".join(options.data)
    total = sum(1 for _ in read_all(options.data, options.read, skipped))
    assert options.model is not None
    scorer = Scorer.from_pretrained(
        options.model,
        device=options.device,
        dtype=options.dtype,
        max_length=options.max_length,
        max_tokens=options.max_tokens,
    )
    usable = False
    with tqdm(total=total, unit="record", disable=not options.progress) as bar:
        for records in chunks(read_all(options.data, options.read, SkipSummary()), CHUNK):
            kept: list[tuple[Record, Encoded]] = []
            for record, encoded in zip(records, scorer.encoder(records), strict=True):
                if isinstance(encoded, Encoded):
                    kept.append((record, encoded))
                elif options.read.skip_bad:
                    skipped.add(encoded.kind, str(encoded))
                else:
                    raise PQMError(f"{names}: {encoded}") from encoded
            usable = usable or bool(kept)
            # a chunk that was interrupted is packed, and so rounded, as it would have been
            if any(record.id not in done for record, _ in kept):
                scores = scorer.score_encoded([encoded for _, encoded in kept])
                found = [(record, own) for (record, _), own in zip(kept, scores, strict=True)]
                for record, own in found:
                    if any(q is not None and not math.isfinite(q) for q in own):
                        raise PQMError(f"{names}: record {record.id}: Q-values are not finite; check {options.model}")
                yield from (pair for pair in found if pair[0].id not in done)
            bar.update(len(records))
    if not usable:
        raise PQMError(f"{names}: no usable record. {skipped}")


@dataclass(frozen=True)
class ScoreConfig:
    """Write the Q-value of every step, for records with or without labels."""

    model: str
    """Folder of a checkpoint of pqm-fast (or its hub id)."""
    data: tuple[str, ...]
    """Records: files (JSON lines, JSON, Parquet), folders saved by `datasets`, hub data set names."""
    out: str
    """JSON lines to write: the records with `scores`. While unfinished it is called OUT.part, and the same command
    goes on from there."""
    read: ReadOptions = field(default_factory=ReadOptions)
    max_length: int | None = None
    """Longest solution in tokens; steps beyond it get null. Default: the model's context."""
    max_tokens: int = 16384
    """Tokens of one forward pass."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    dtype: DType = "auto"
    """bfloat16 on a GPU, float32 on a CPU."""
    progress: bool = True
    """Show the progress bar."""


def score(config: ScoreConfig) -> Path:
    """Scores files, whatever their size. Returns the path written; raises PQMError for what cannot be scored."""
    out, part = Path(config.out), Path(config.out + ".part")
    if out.exists():
        raise PQMError(f"{out}: exists already; delete it or choose another --out")
    skipped, cut = SkipSummary(), 0
    scored = score_records(config, skipped, done=_done(part, config))
    first = next(scored, None)  # nothing is written before the input and the model are known to be good
    out.parent.mkdir(parents=True, exist_ok=True)
    _begun_with(part).write_text(json.dumps(_means(config)), encoding="utf-8")
    with open(part, "a", encoding="utf-8") as file:
        for record, scores in chain([first] if first else [], scored):
            file.write(json.dumps(_row(record, scores), ensure_ascii=False) + "\n")
            cut += None in scores
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, out)
    _begun_with(part).unlink()
    if skipped.total:
        print(skipped)
    if cut:
        print(f"{cut:,} records do not fit the context: null stands for the scores of their last steps")
    return out


def _row(record: Record, scores: Scores) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id, "prompt": record.prompt, "completions": record.steps}
    if record.labels is not None:
        row["labels"] = record.labels
    return row | {"scores": scores} | {k: v for k, v in record.extra.items() if k not in (*row, "scores")}


def _means(config: ScoreConfig) -> dict[str, Any]:
    """What the scores depend on, beyond rounding."""
    weights = sorted(Path(config.model).glob("*.safetensors"))
    return {
        "model": str(Path(config.model).resolve()),
        "weights": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights],
        "data": [str(Path(name).resolve()) if Path(name).exists() else name for name in config.data],
        "read": asdict(config.read) | {"skip_bad": None},  # a run that stopped at a bad record may go on without it
        "max_length": config.max_length,
        "dtype": config.dtype,
    }


def _begun_with(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _done(part: Path, config: ScoreConfig) -> set[str]:
    """Ids that an interrupted run has written already; its last line, if cut off, is removed."""
    if not part.exists():
        return set()
    done, end = set(), 0
    try:
        before = json.loads(_begun_with(part).read_text(encoding="utf-8"))
        with open(part, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                done.add(json.loads(line)["id"])
                end += len(line)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PQMError(f"{part}: damaged ({error}); delete it to start over") from error
    now = _means(config)
    if changed := [name for name in now if before.get(name) != now[name]]:
        values = ", ".join(f"{name} ({before.get(name)!r} then, {now[name]!r} now)" for name in changed)
        raise PQMError(f"{part}: was begun with other options: {values}; delete it to start over")
    os.truncate(part, end)
    return done
