"""Every option of `pqm-fast train`, with its default and its one line of help."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pqm_fast.common.options import Attention, DType, Layers, Loss
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a decoder into a process Q-value model."""

    model: str
    """Folder or hub id of a decoder. A folder with only a config.json and a tokenizer starts from random weights."""
    data: tuple[str, ...]
    """Step-labelled records: files (JSON lines, JSON, Parquet), folders or patterns of them, hub data set names."""
    out: str
    """Run folder: the checkpoint itself, metrics.jsonl, training.png, config.yaml, checkpoints/."""

    loss: Loss = "rank"
    """rank is PQM's comparative loss (paper Eq. 10); bce, mse and orm are the classification baselines."""
    zeta: float = 4.0
    """Margin between correct and wrong steps in rank, rank-theory and pairwise (try 2 to 16)."""
    label_threshold: float | None = None
    """Turn soft labels into hard ones: correct from this value on. Needed for losses that take only 0 and 1."""

    read: ReadOptions = field(default_factory=ReadOptions)
    template: Template = field(default_factory=Template)
    max_length: int | None = None
    """Longest trajectory in tokens; longer ones are cut at a step. Default: the model's context, at most 4096."""
    cache_dir: str | None = None
    """Where tokenised data is kept. Default: pqm-fast in the user's cache folder."""

    eval_data: tuple[str, ...] = ()
    """Held-out records. Default: --eval-fraction of the training questions."""
    eval_fraction: float = 0.02
    """Share of questions held out for evaluation (0: none). No question is on both sides."""
    eval_every: int = 200
    """Optimizer steps between evaluations (0: only at the end)."""
    eval_limit: int = 4000
    """Trajectories in an evaluation during training; the one at the end takes all."""

    micro_batch_tokens: int | Literal["auto"] = "auto"
    """Tokens of one forward pass; trajectories are packed into it without padding. auto: 16384, or where the memory
    of the GPU or of the machine is estimated not to suffice half of that, and so on, with accumulation doubled in
    turn."""
    prefix_tree: bool = False
    """Compute what solutions of one question share (the question, common first steps) once: the same gradient from
    fewer tokens. Batches hold whole questions, so they are less of a mixture: let --micro-batch-tokens hold several
    questions with all their solutions."""
    accumulation: int = 1
    """Micro-batches of one optimizer step. The loss is normalised over all of them together."""
    epochs: float = 1.0
    """Passes over the data, if --max-steps is not given."""
    max_steps: int | None = None
    """Optimizer steps."""
    learning_rate: float = 1e-5
    """Peak learning rate: about 1e-5 to fine-tune, 1e-3 for small models from scratch."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, then a cosine. Default: 3% of all steps."""
    final_lr: float = 0.0
    """Learning rate at the end, as a fraction of the peak."""
    weight_decay: float = 0.0
    """AdamW's decay, on matrices only."""
    beta1: float = 0.9
    """AdamW."""
    beta2: float = 0.999
    """AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient (0: not clipped)."""

    seed: int = 0
    """Of the order of the data, the held-out split, dropout and new weights."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    dtype: DType = "auto"
    """Of the weights and the computation. auto: bfloat16 on a GPU, and on a CPU that is measured to be clearly faster
    in it, otherwise float32. The optimizer (adamw) keeps float32 master weights for either."""
    save_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the weights in the final checkpoint."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """adamw keeps float32 master weights and moments; adamw-8bit (torchao) moments of 8 bits, and bfloat16 weights
    that are rounded stochastically: 6 bytes a parameter instead of 14."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank (peft) and the Q-value head, the rest of the weights stays. The checkpoint
    has them merged in. 0: train every weight."""
    lora_alpha: int = 32
    """Scale of the adapters: they are multiplied by --lora-alpha / --lora-rank."""

    attention: Attention = "auto"
    """How packed tokens attend on a GPU: flash-attn (2, 3 or 4) where it is installed, else PyTorch's varlen kernels.
    sdpa is what a CPU has."""
    layers: Layers = "auto"
    """How decoder layers are computed: as transformers has them, compiled one by one, or with liger-kernel's kernels.
    auto: compiled on a GPU, eager on a CPU."""
    recompute_layers: int | Literal["auto", "all"] = "auto"
    """Decoder layers whose activations are computed again in the backward pass instead of being kept: less memory,
    more time. auto: as few as the memory is estimated to need; on a CPU micro-batches are made smaller first."""
    float8: bool = False
    """Products of matrices in 8-bit floats (torchao; Ada, Hopper and later GPUs). Not exact: compare before you rely
    on it."""
    loader_workers: int | Literal["auto"] = "auto"
    """Processes that build batches ahead. auto: up to 4 for a GPU, 0 (none but this one) for a CPU."""

    save_every: int = 500
    """Optimizer steps between resumable checkpoints; there is one more at the end. 0: none, but for a run that is
    stopped by a signal."""
    keep_checkpoints: int = 2
    """How many of them are kept."""
    resume: bool = False
    """Go on from the newest intact checkpoint in the run folder, to more steps than before if more are asked for."""
    log_every: int = 10
    """Optimizer steps between lines of metrics."""
    progress: bool = True
    """Show the progress bar."""

    def __post_init__(self):
        rules: tuple[tuple[str, Callable[[float], bool], str], ...] = (  # NaN breaks every one
            (
                "above 0",
                lambda value: 0 < value < math.inf,
                "max_length eval_limit micro_batch_tokens accumulation epochs max_steps learning_rate keep_checkpoints "
                "log_every lora_alpha",
            ),
            (
                "0 or more",
                lambda value: 0 <= value < math.inf,
                "zeta eval_every warmup_steps final_lr weight_decay clip save_every lora_rank recompute_layers "
                "loader_workers",
            ),
            ("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63, "seed"),
            ("in [0, 1)", lambda value: 0 <= value < 1, "eval_fraction beta1 beta2"),
            ("in (0, 1]", lambda value: 0 < value <= 1, "label_threshold"),
        )
        for allowed, holds, names in rules:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not isinstance(value, str) and not holds(value):
                    raise PQMError(f"{name}: {value} was given; it must be a finite number {allowed}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"data": list(self.data), "eval_data": list(self.eval_data)}

    def to_store(self) -> dict[str, Any]:
        """As config.yaml and checkpoints keep it."""
        return {name: value for name, value in self.to_dict().items() if name != "resume"}

    @property
    def folder(self) -> Path:
        return Path(self.out)


# options that leave every loss as it was
WITHOUT_EFFECT = {
    "resume", "progress", "log_every", "save_every", "keep_checkpoints", "eval_every", "eval_limit", "cache_dir", "out",
    "save_dtype", "loader_workers", "recompute_layers",
}  # fmt: skip
# options that say how far to go: a continuation may go further
LENGTH = {"epochs", "max_steps"}
