"""The options of `pqm-fast score`, and the scoring options that other commands share."""

from dataclasses import dataclass, field, fields
from typing import Any

from pqm_fast.common.options import Attention, DType
from pqm_fast.data.formats import ReadOptions
from pqm_fast.scoring.third_party import ThirdPartyPRM


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded and computes."""

    max_length: int | None = None
    """Longest solution in tokens. Steps beyond it get null; the solution stays. Default: the model's context."""
    max_tokens: int = 16384
    """Tokens of one forward pass."""
    prefix_tree: bool = False
    """Compute tokens that solutions of one question share only once: the same scores up to rounding, from fewer tokens.
    Worth it for many candidates per question."""
    device: str = "auto"
    """auto: cuda if there is one, otherwise cpu."""
    dtype: DType = "auto"
    """auto: bfloat16 on a GPU, and on a CPU on which it is measured to be clearly faster; otherwise float32."""
    attention: Attention = "auto"
    """How packed tokens attend on a GPU: flash-attn where it is installed, otherwise PyTorch's varlen kernels. On a
    CPU: sdpa."""
    third_party: ThirdPartyPRM = field(default_factory=ThirdPartyPRM)

    def loading(self) -> dict[str, Any]:
        """The arguments of `Scorer.from_pretrained`."""
        return {option.name: getattr(self, option.name) for option in fields(ModelOptions)}


@dataclass(frozen=True)
class ScoringOptions(ModelOptions):
    """How a model scores records."""

    progress: bool = True
    """Show the progress bar."""


@dataclass(frozen=True)
class ScoreConfig:
    """Write the Q-value of every step, for records with or without labels."""

    model: str
    """Folder or hub id of a pqm-fast checkpoint; with --preset, of a third-party PRM."""
    data: tuple[str, ...]
    """Records: files (JSON lines, JSON, Parquet), folders, patterns for file names, or hub data set names."""
    out: str
    """JSON lines to write. Until they are complete they are in OUT.part, and the same command resumes from there."""
    read: ReadOptions = field(default_factory=ReadOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
