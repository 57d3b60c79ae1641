"""`pqm-fast score`: the Q-value of every step of whole files, resumable."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import Record
from pqm_fast.data.scores import SCORED_BY, model_name
from pqm_fast.data.state import model_key, source_key
from pqm_fast.files import atomic_file
from pqm_fast.journal import Journal, begun
from pqm_fast.lock import locked
from pqm_fast.options import Attention, DType
from pqm_fast.other_prms import OtherPRM


@dataclass(frozen=True)
class ScoringOptions:
    """How a checkpoint scores records."""

    max_length: int | None = None
    """Longest solution in tokens; steps beyond it get null, and such solutions stay. Default: the model's context."""
    max_tokens: int = 16384
    """Tokens of one forward pass."""
    prefix_tree: bool = False
    """Compute what solutions of one question share once: the same scores up to rounding, from fewer tokens. Worth it
    for many candidates a question."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    dtype: DType = "auto"
    """auto: bfloat16 on a GPU, and on a CPU that is measured to be clearly faster in it, otherwise float32."""
    attention: Attention = "auto"
    """How packed tokens attend on a GPU: flash-attn where it is installed, else PyTorch's varlen kernels. sdpa is what
    a CPU has."""
    other: OtherPRM = field(default_factory=OtherPRM)
    progress: bool = True
    """Show the progress bar."""


@dataclass
class CutOff:
    """Solutions that do not fit the context: how many, and how many of them have no score at all."""

    limit: str = ""
    """The limit that they met, in words."""
    records: int = 0
    unscored: int = 0

    def add(self, scores: Sequence[float | None]) -> None:
        self.records += None in scores
        self.unscored += all(q is None for q in scores)

    def __str__(self) -> str:
        one = self.records == 1
        last = "last steps" if self.unscored < self.records else "steps"
        text = f"{self.records:,} {'record does' if one else 'records do'} not fit {self.limit}: null stands for the "
        text += f"scores of {'its' if one else 'their'} {last}"
        if 0 < self.unscored < self.records:
            text += f", of {self.unscored:,} for all of them"
        return text


@dataclass(frozen=True)
class ScoreConfig:
    """Write the Q-value of every step, for records with or without labels."""

    model: str
    """Folder of a checkpoint of pqm-fast (or its hub id); with --preset of a PRM of others."""
    data: tuple[str, ...]
    """Records: files (JSON lines, JSON, Parquet), folders or patterns of them, hub data set names."""
    out: str
    """JSON lines to write. While unfinished it is called OUT.part, and the same command goes on from there."""
    read: ReadOptions = field(default_factory=ReadOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)


def score(config: ScoreConfig) -> Path:
    """Scores files, whatever their size. Returns the path written; raises PQMError for what cannot be scored."""
    with locked(Path(config.out), "score"):
        return _score(config)


def _score(config: ScoreConfig) -> Path:
    from pqm_fast.scorer import score_records

    out, skipped, cut = Path(config.out), SkipSummary(), CutOff()
    config = _settled(config, begun(out))
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
    with journal.kept():
        for record, scores in score_records(
            config.model, config.data, config.read, config.scoring, skipped, cut, frozenset(places)
        ):
            places[record.id] = journal.append(_row(record, scores, model))
        ids: Iterable[str] = places
        if journal.damaged:  # what was done again stands at the end
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
    from pqm_fast.pretrained import dtype_name, pick_device, pick_dtype

    dtype: Any = config.scoring.dtype
    if dtype == "auto" and begun is not None:
        dtype = begun.get("dtype", "auto")
    if dtype == "auto":
        dtype = dtype_name(pick_dtype("auto", pick_device(config.scoring.device), config.model))
    return replace(config, scoring=replace(config.scoring, dtype=dtype))
