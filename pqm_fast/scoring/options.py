"""The options of `pqm-fast score`, and those of scoring that other commands share."""

from dataclasses import dataclass, field

from pqm_fast.common.options import Attention, DType
from pqm_fast.data.formats import ReadOptions
from pqm_fast.scoring.other_prms import OtherPRM


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
