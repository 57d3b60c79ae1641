"""`pqm-fast score`: the Q-value of every step of whole files, resumable."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.options import Attention, DType
from pqm_fast.other_prms import OtherPRM

SAVE_SECONDS = 2.0  # what a machine that goes down costs at most


@dataclass(frozen=True)
class ScoringOptions:
    """How a checkpoint scores records."""

    max_length: int | None = None
    """Longest solution in tokens; steps beyond it get null, and such solutions stay. Default: the model's context."""
    max_tokens: int = 16384
    """Tokens of one forward pass."""
    prefix_tree: bool = False
    """Compute what solutions of one question share once: the same scores up to rounding, from fewer tokens. For GPUs:
    on a CPU the mask costs more than the tokens that it saves."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    dtype: DType = "auto"
    """auto: bfloat16 on a GPU, and on a CPU that is measured to be clearly faster in it, otherwise float32."""
    attention: Attention = "auto"
    """How packed tokens attend on a GPU: flash-attn where it is installed, else PyTorch's varlen kernels; prefix trees
    take FlexAttention. sdpa is what a CPU has."""
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
    """Records: files (JSON lines, JSON, Parquet), folders saved by `datasets`, hub data set names."""
    out: str
    """JSON lines to write. While unfinished it is called OUT.part, and the same command goes on from there."""
    read: ReadOptions = field(default_factory=ReadOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)


def score(config: ScoreConfig) -> Path:
    """Scores files, whatever their size. Returns the path written; raises PQMError for what cannot be scored."""
    from pqm_fast.scorer import score_records

    out, part = Path(config.out), Path(config.out + ".part")
    if out.exists():
        raise PQMError(f"{out}: exists already; delete it or choose another --out")
    skipped, cut = SkipSummary(), CutOff()
    begun = _begun(part)
    config = _settled(config, begun)
    done = _done(part, config, begun, cut) if begun is not None else set()
    scored = score_records(config.model, config.data, config.read, config.scoring, skipped, cut, done)
    first = next(scored, None)  # nothing is written before the input and the model are known to be good
    out.parent.mkdir(parents=True, exist_ok=True)
    _begun_with(part).write_text(json.dumps(_means(config)), encoding="utf-8")
    with open(part, "a", encoding="utf-8") as file:
        saved = time.monotonic()
        for record, scores in chain([first] if first else [], scored):
            file.write(json.dumps(_row(record, scores), ensure_ascii=False) + "\n")
            if time.monotonic() - saved > SAVE_SECONDS:
                _save(file)
                saved = time.monotonic()
        _save(file)
    os.replace(part, out)
    _begun_with(part).unlink()
    if skipped.total:
        print(skipped)
    if cut.records:
        print(cut)
    return out


def _save(file: TextIO) -> None:
    """What was written so far survives the machine."""
    file.flush()
    os.fsync(file.fileno())


def _row(record: Record, scores: Sequence[float | None]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id, "prompt": record.prompt, "completions": record.steps}
    if record.labels is not None:
        row["labels"] = record.labels
    return row | {"scores": scores} | {k: v for k, v in record.extra.items() if k not in (*row, "scores")}


def _means(config: ScoreConfig) -> dict[str, Any]:
    """What the scores depend on, beyond rounding."""
    from pqm_fast.data.dataset import source_key

    weights = sorted(Path(config.model).glob("*.safetensors"))
    return {
        "model": str(Path(config.model).resolve()),
        "weights": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights],
        "data": [source_key(name) for name in config.data],
        "read": asdict(config.read) | {"skip_bad": None},  # a run that stopped at a bad record may go on without it
        "max_length": config.scoring.max_length,
        "dtype": config.scoring.dtype,
        "other": asdict(config.scoring.other) if config.scoring.other.given else None,
    }


def _begun_with(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _begun(part: Path) -> dict[str, Any] | None:
    """What `_means` was of the interrupted run that `part` is of, if there is one."""
    if not part.exists():
        return None
    try:
        return json.loads(_begun_with(part).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(part, error) from error


def _settled(config: ScoreConfig, begun: dict[str, Any] | None) -> ScoreConfig:
    """With the dtype that auto stands for; what was begun goes on in its own."""
    from pqm_fast.pretrained import dtype_name, pick_device, pick_dtype

    dtype: Any = config.scoring.dtype
    if dtype == "auto" and begun is not None:
        dtype = begun.get("dtype", "auto")
    if dtype == "auto":
        dtype = dtype_name(pick_dtype("auto", pick_device(config.scoring.device), config.model))
    return replace(config, scoring=replace(config.scoring, dtype=dtype))


def _damaged(part: Path, error: Exception) -> PQMError:
    return PQMError(f"{part}: damaged ({error}); delete it to start over")


def _done(part: Path, config: ScoreConfig, begun: dict[str, Any], cut: CutOff) -> set[str]:
    """Ids that an interrupted run has written already; its last line, if cut off, is removed."""
    done, end = set(), 0
    try:
        with open(part, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                row = json.loads(line)
                done.add(row["id"])
                cut.add(row["scores"])
                end += len(line)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(part, error) from error
    now = _means(config)
    if changed := [name for name in now if begun.get(name) != now[name]]:
        values = ", ".join(f"{name} ({begun.get(name)!r} then, {now[name]!r} now)" for name in changed)
        raise PQMError(f"{part}: was begun with other options: {values}; delete it to start over")
    os.truncate(part, end)
    return done
