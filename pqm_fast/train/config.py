"""Every option of `pqm-fast train`, with its default and the text that --help shows."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pqm_kernels.losses import LOSSES
from pqm_kernels.losses import Loss as LossEntry

from pqm_fast.common.options import Attention, Compare, DType, Layers, Loss, check_noise
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a decoder into a process Q-value model."""

    model: str
    """Folder or hub id of a decoder. A folder with only a config.json and a tokenizer starts from random weights."""
    data: tuple[str, ...]
    """Records with step labels (for the listwise losses, outcomes): files (JSON lines, JSON, Parquet), folders, file
    patterns, names of hub data sets."""
    out: str
    """Run folder. It gets the finished model, metrics.jsonl, training.png, config.yaml and checkpoints/."""

    loss: Loss = "rank"
    """rank is PQM's comparative loss (paper Eq. 10); bce, mse and orm are the classification baselines; first-error
    learns up to the first wrong step, and first-error-noisy from labels that may be wrong (--noise). Six losses compare
    solutions, and so need several of each question: sibling compares steps that continue the same beginning, group-rank
    and group-contrastive all steps, and the three listwise losses whole solutions. The listwise losses need no step
    labels, but whether each solution is right: `correct`, or the right `answer`, or a label for every step."""
    compare: Compare = "none"
    """Add a loss that compares solutions to a --loss that takes them one by one. The data must have what both need."""
    compare_weight: float = 1.0
    """Factor of the loss that --compare adds."""
    zeta: float = 4.0
    """Margin between correct and wrong steps in rank, rank-theory, pairwise, group-rank and group-contrastive (try 2 to
    16)."""
    temperature: float = 1.0
    """Temperature of the soft minimum over the steps of a solution in listwise-softmin (near 0: the minimum)."""
    noise: tuple[float, float] | Literal["auto"] = (0.1, 0.1)
    """For first-error-noisy: the probability that a step before the first error is labelled wrong, and that a step from
    there on is labelled correct. auto: both are estimated from the training labels."""
    label_threshold: float | None = None
    """Make soft labels hard: from this value on, a step is correct. Needed for losses that take only 0 and 1."""

    read: ReadOptions = field(default_factory=ReadOptions)
    template: Template = field(default_factory=Template)
    max_length: int | None = None
    """Longest trajectory in tokens; longer ones are cut after a step. Default: the model's context, at most 4096."""
    cache_dir: str | None = None
    """Folder for tokenised data. Default: pqm-fast in the user's cache folder."""

    exclude: str | None = None
    """File with ids of records to leave out, one a line: those that the log names for steps that were left out, say."""

    eval_data: tuple[str, ...] = ()
    """Held-out records. Default: --eval-fraction of the training questions."""
    eval_fraction: float = 0.02
    """Share of the questions to hold out for evaluation (0: none). A question is never on both sides."""
    eval_every: int = 200
    """Optimizer steps between evaluations (0: only at the end)."""
    eval_limit: int = 4000
    """Most trajectories in an evaluation during training, of whole questions if the loss compares their solutions; the
    evaluation at the end takes all."""

    micro_batch_tokens: int | Literal["auto"] = "auto"
    """Tokens in a forward pass; trajectories are packed into it without padding. auto: 16384. If the memory of the GPU
    or the machine is estimated to be too small, this is halved, and --accumulation doubled, until it fits."""
    prefix_tree: bool = False
    """Compute what the solutions of a question share (the question, common first steps) only once: the same gradient
    from fewer tokens. Batches then hold whole questions and are mixed less, so --micro-batch-tokens should be large
    enough for several questions with all their solutions."""
    accumulation: int = 1
    """Micro-batches of each process in an optimizer step. The loss is normalised over those of all processes together.
    A run that is resumed on another number of processes keeps the size of its optimizer step."""
    epochs: float = 1.0
    """Passes over the data. Ignored if --max-steps is set."""
    max_steps: int | None = None
    """Optimizer steps. Default: as many as --epochs takes."""
    learning_rate: float = 1e-5
    """Peak learning rate: about 1e-5 for fine-tuning, 1e-3 for small models from scratch."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; a cosine follows. Default: as many as --warmup-fraction says."""
    warmup_fraction: float = 0.03
    """Share of all steps that is warm-up. Ignored if --warmup-steps is set."""
    final_lr: float = 0.0
    """Learning rate at the end, as a fraction of the peak."""
    weight_decay: float = 0.0
    """Weight decay of AdamW, on matrices only."""
    beta1: float = 0.9
    """Decay rate of AdamW's first moment."""
    beta2: float = 0.999
    """Decay rate of AdamW's second moment."""
    clip: float = 1.0
    """Clip the gradient to this norm (0: no clipping)."""
    skip_spikes: float = 0.0
    """Leave out an optimizer step whose gradient norm is more than this many standard deviations above the mean of the
    last 128 steps (6, say). 0: none. A step whose loss or gradient is not finite is always left out."""
    max_skipped: int = 3
    """End the run if this many optimizer steps in a row are left out."""

    seed: int = 0
    """Seed for the order of the data, the held-out split, dropout and new weights."""
    device: str = "auto"
    """cpu or cuda. auto: cuda if there is a GPU, otherwise cpu."""
    dtype: DType = "auto"
    """Data type of the weights and the computation. auto: bfloat16 on a GPU, and on a CPU where a measurement shows
    that it is clearly faster; otherwise float32. The optimizer adamw keeps float32 master weights in both cases."""
    save_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Data type of the weights in the finished model."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """adamw keeps float32 master weights and moments: 14 bytes per parameter. adamw-8bit (torchao) keeps 8-bit moments
    and rounds bfloat16 weights stochastically: 6 bytes per parameter."""
    init_head: str | None = None
    """Folder of a checkpoint whose Q-value head the run starts from, in place of a new one. Its backbone must have the
    architecture, width and depth of --model, and its template must be that of the run. A backbone with other weights,
    as after a fine-tuning, gives a warning."""
    lora_rank: int = 0
    """Train only low-rank adapters of this rank (peft) and the Q-value head. The adapters are merged into the finished
    model. 0: train every weight."""
    lora_alpha: int = 32
    """Scale of the adapters: their output is multiplied by --lora-alpha / --lora-rank."""

    shard_within: int | None = None
    """With several processes (torchrun): how many of them share one copy of the weights and of the optimizer's state,
    such as the 8 GPUs of a machine. Default: all."""
    attention: Attention = "auto"
    """Attention kernels for packed tokens. auto: on a GPU, flash-attn (2, 3 or 4) if it is installed, otherwise
    PyTorch's varlen kernels; on a CPU, sdpa."""
    layers: Layers = "auto"
    """How decoder layers are computed: eager (as in transformers), compiled one by one, or with liger-kernel. auto:
    compiled on a GPU, eager on a CPU."""
    recompute_layers: int | Literal["auto", "all"] = "auto"
    """Decoder layers whose activations are computed again in the backward pass instead of being kept: less memory,
    more time. auto: as few as the estimated memory allows; on a CPU, micro-batches are made smaller first."""
    float8: bool = False
    """Multiply matrices in 8-bit floats (torchao; Ada, Hopper and later GPUs). This is less exact: compare results
    before you rely on it."""
    loader_workers: int | Literal["auto"] = "auto"
    """Processes that prepare batches in advance. auto: up to 4 for a GPU, 0 (only the training process) for a CPU."""

    save_every: int = 500
    """Optimizer steps between resumable checkpoints; the last step has one too. 0: none, unless a signal stops the
    run."""
    keep_checkpoints: int = 2
    """How many resumable checkpoints to keep, the newest ones. The one with the lowest held-out loss stays too."""
    resume: bool = False
    """Resume from the newest intact checkpoint in the run folder. More --max-steps or --epochs than before
    extend the run."""
    log_every: int = 10
    """Optimizer steps between lines of metrics."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Show the metrics in these trackers, too. Each needs its library, installed with pip under the same name. A run
    that is resumed continues the one that they show; if one fails during the run, the training goes on without it."""
    track_project: str = "pqm-fast"
    """Project in which wandb and trackio list the run."""
    progress: bool = True
    """Show the progress bar."""

    def __post_init__(self):
        rules: tuple[tuple[str, Callable[[float], bool], str], ...] = (  # NaN breaks every rule
            (
                "above 0",
                lambda value: 0 < value < math.inf,
                "max_length eval_limit micro_batch_tokens accumulation epochs max_steps learning_rate keep_checkpoints "
                "log_every lora_alpha compare_weight temperature max_skipped shard_within",
            ),
            (
                "0 or more",
                lambda value: 0 <= value < math.inf,
                "zeta eval_every warmup_steps final_lr weight_decay clip save_every lora_rank recompute_layers "
                "loader_workers skip_spikes",
            ),
            ("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63, "seed"),
            ("in [0, 1)", lambda value: 0 <= value < 1, "eval_fraction warmup_fraction beta1 beta2"),
            ("in (0, 1]", lambda value: 0 < value <= 1, "label_threshold"),
        )
        for allowed, holds, names in rules:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not isinstance(value, str) and not holds(value):
                    raise PQMError(f"{name}: {value} was given; it must be a finite number {allowed}")
        check_noise(self.noise)
        if self.compare == "none" and self.compare_weight != 1:
            raise PQMError(f"compare_weight: {self.compare_weight} was given, but no loss to --compare solutions with")
        if self.compare != "none" and LOSSES[self.loss].unit == "question":
            single = ", ".join(name for name, loss in LOSSES.items() if loss.unit == "trajectory")
            raise PQMError(
                f"compare: {self.compare} was given, but the loss {self.loss} compares solutions itself; leave it out, "
                f"or choose a --loss that takes solutions one by one ({single})"
            )

    @property
    def losses(self) -> dict[str, LossEntry]:
        """The losses that are trained with, by name: one, or two with `compare`."""
        return {name: LOSSES[name] for name in (self.loss, self.compare) if name != "none"}

    @property
    def whole_questions(self) -> bool:
        """A loss compares the solutions of a question, so that these must be in one batch."""
        return any(loss.unit == "question" for loss in self.losses.values())

    @property
    def needs_outcomes(self) -> bool:
        """A loss reads whether whole solutions are right."""
        return any(loss.uses_outcomes for loss in self.losses.values())

    @property
    def reads_labels(self) -> bool:
        """A loss reads step labels."""
        return not all(loss.uses_outcomes for loss in self.losses.values())

    def to_dict(self) -> dict[str, Any]:
        lists = {name: list(value) for name, value in vars(self).items() if isinstance(value, tuple)}
        return asdict(self) | lists

    def to_store(self) -> dict[str, Any]:
        """The options as config.yaml and checkpoints keep them."""
        return {name: value for name, value in self.to_dict().items() if name != "resume"}

    @property
    def folder(self) -> Path:
        return Path(self.out)


# options that do not change the loss of any step
WITHOUT_EFFECT = {
    "resume", "progress", "log_every", "save_every", "keep_checkpoints", "eval_every", "eval_limit", "cache_dir", "out",
    "save_dtype", "loader_workers", "recompute_layers", "max_skipped", "shard_within",
    "track", "track_project",
}  # fmt: skip
# options that set the length of a run, which --resume may extend
RUN_LENGTH = {"epochs", "max_steps"}
