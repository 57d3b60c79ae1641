"""Every option of `pqm-fast probe`, with its default and the text that --help shows."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pqm_fast.common.combination import parse_loss
from pqm_fast.common.options import Attention, DType, check_noise
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError

Select = Literal["auroc", "pair_accuracy", "balanced_accuracy_calibrated", "first_error_accuracy_calibrated"]


@dataclass(frozen=True)
class ProbeConfig:
    """Train Q-value heads on the hidden states of a frozen decoder.

    The states of all steps are computed once and kept, so that a head takes seconds. The grid: every loss, with every
    margin and comparison weight that it has, at every layer, with every learning rate and seed. The best head on
    held-out questions becomes a checkpoint; that of a middle layer has a decoder that ends there.
    """

    model: str
    """Folder or hub id of a decoder."""
    data: tuple[str, ...]
    """Records with step labels (for the listwise losses, outcomes): files (JSON lines, JSON, Parquet), folders, file
    patterns, names of hub data sets."""
    out: str
    """Run folder. It gets the checkpoint of the best head, heads.jsonl, heads.npz and layers.png. The same
    command continues an interrupted run."""

    losses: tuple[str, ...] = ("rank", "bce")
    """Losses to train with: any of `pqm-fast train --loss`, and combinations with one of its --compare, as
    bce+sibling."""
    zetas: tuple[float, ...] = (4.0,)
    """Margins, for the losses that have one."""
    compare_weights: tuple[float, ...] = (1.0,)
    """Weights of the comparison in combinations."""
    layers: tuple[int, ...] = ()
    """Decoder layers whose output heads read, counted from 1. Default: up to eight, evenly spaced, with the last."""
    learning_rates: tuple[float, ...] = (5e-3, 2e-2)
    """Learning rates. Heads read states that are scaled to unit variance, so the same rates suit all models."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, for the batches and their order. The first one also chooses the held-out questions."""
    temperature: float = 1.0
    """Temperature of the soft minimum in listwise-softmin."""
    noise: tuple[float, float] = (0.1, 0.1)
    """For first-error-noisy: the probability that a step before the first error is labelled wrong, and that a step from
    there on is labelled correct."""
    label_threshold: float | None = None
    """Make soft labels hard: from this value on, a step is correct. Needed for losses that take only 0 and 1."""

    read: ReadOptions = field(default_factory=ReadOptions)
    template: Template = field(default_factory=lambda: Template(step_token="last"))
    max_length: int | None = None
    """Longest trajectory in tokens; longer ones are cut after a step. Default: the model's context, at most 4096."""
    cache_dir: str | None = None
    """Folder for tokenised data and hidden states. Default: pqm-fast in the user's cache folder."""

    eval_data: tuple[str, ...] = ()
    """Held-out records. Default: --eval-fraction of the training questions."""
    eval_fraction: float = 0.15
    """Share of the questions to hold out. A question is never on both sides."""
    select: Select = "auroc"
    """The figure on held-out questions that chooses the head of the checkpoint: the setting with the best mean over
    seeds, and of it the best seed."""
    batch_steps: int = 1024
    """Steps in an optimizer step, of whole questions."""
    epochs: int = 200
    """The most passes over the data."""
    patience: int = 4
    """A head stops after so many passes without a lower held-out loss. The pass with the lowest counts."""
    weight_decay: float = 0.0
    """Weight decay of AdamW, on the weights of the head for states of unit variance."""

    device: str = "auto"
    """cpu or cuda. auto: cuda if there is a GPU, otherwise cpu."""
    dtype: DType = "auto"
    """Data type in which states are computed and kept, and of the decoder in the checkpoint; heads are float32. auto:
    bfloat16 on a GPU, and on a CPU where a measurement shows that it is clearly faster; otherwise float32."""
    attention: Attention = "auto"
    """How packed tokens attend on a GPU: flash-attn where it is installed, otherwise PyTorch's varlen kernels. On a
    CPU: sdpa."""
    max_tokens: int = 8192
    """Tokens of one forward pass, packed as prefix trees of whole questions."""
    progress: bool = True
    """Show the progress bars."""

    def __post_init__(self) -> None:
        for loss in self.losses:
            parse_loss(loss)
        check_noise(self.noise)
        positive = ("learning_rates", "compare_weights", "layers", "temperature", "max_length", "batch_steps", "epochs")
        for name in (*positive, "patience", "max_tokens"):
            self._check(name, "above 0", lambda value: 0 < value < math.inf)
        for name in ("zetas", "weight_decay"):
            self._check(name, "0 or more", lambda value: 0 <= value < math.inf)
        self._check("seeds", "from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63)
        self._check("eval_fraction", "in (0, 1)", lambda value: 0 < value < 1)
        for name in ("losses", "zetas", "compare_weights", "learning_rates", "seeds"):
            if not getattr(self, name):
                raise PQMError(f"{name}: none was given; give at least one")

    def _check(self, name: str, allowed: str, holds: Any) -> None:
        values = getattr(self, name)
        for value in values if isinstance(values, tuple) else (values,):
            if value is not None and not holds(value):
                raise PQMError(f"{name}: {value} was given; it must be a finite number {allowed}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def folder(self) -> Path:
        return Path(self.out)
