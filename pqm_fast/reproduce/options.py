"""The options of `pqm-fast reproduce`. The defaults are the published names and numbers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pqm_kernels.losses import LOSSES

from pqm_fast.common.options import Attention, DType, Loss
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.run import Aggregator

PROTOCOLS = ("pqm",)


@dataclass(frozen=True)
class ReproduceConfig:
    """Train with every loss as a paper did, score its pools of solutions, and compare the Best-of-N.

    The protocol pqm is that of "Process Reward Model with Q-Value Rankings" (ICLR 2025, arXiv 2410.11287). Run the same
    command again to continue after an interruption; losses and margins can be added.
    """

    protocol: str
    """Name of the protocol, which may come first without --protocol: pqm."""
    out: str = "runs/reproduce-pqm"
    """Folder for the runs, the scores, results.json, reproduce.md and a picture."""
    estimate_only: bool = False
    """Count the tokens, measure a few micro-batches, print what it would cost, and stop."""

    model: str = "deepseek-ai/deepseek-math-7b-base"
    """Folder or hub id of the decoder to train."""
    data: tuple[str, ...] = ("peiyi9979/Math-Shepherd",)
    """Records with step labels to train on: files, folders, patterns for file names, or names of hub data sets."""
    pools: tuple[str, ...] = ("Windy0822/PQM/eval_data",)
    """Pools of candidate solutions: files, folders, patterns, or a file or folder of a model on the hub
    (ORG/NAME/FOLDER). Each record is a question with its `responses`, which are cut into steps where a text says "Step
    2:" and so on."""
    answers: tuple[str, ...] = ("HuggingFaceH4/MATH-500", "qintongli/GSM-Plus:testmini")
    """Where the right answers to the questions of the pools are, if they are not in the pools."""

    losses: tuple[Loss, ...] = ("rank", "bce", "mse", "orm")
    """Losses to train with; any of `pqm-fast train --loss`."""
    zetas: tuple[float, ...] = (2.0, 4.0)
    """Margins of the losses that have one. Each is a training."""
    baseline: str = "bce"
    """The training that the others are compared with, question by question: a loss, or with several margins the name of
    one, such as rank-zeta4."""
    aggregate: Aggregator = "min"
    """How the Q-values of the steps make one score of a solution. A loss that trains the last step only, such as orm,
    always takes that of the last step."""
    n: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Numbers N of candidates to choose from. A question for which a policy has fewer than the largest is left out."""

    epochs: float = 2.0
    """Passes over the data. Ignored if --max-steps is set."""
    max_steps: int | None = None
    """Optimizer steps of each training. Default: as many as --epochs takes."""
    learning_rate: float = 1e-6
    """Peak learning rate."""
    warmup_fraction: float = 0.1
    """Share of all steps that is warm-up."""
    micro_batch_tokens: int | Literal["auto"] = "auto"
    """Tokens in a forward pass of a training. auto: 16384; if that needs too much memory, half of it and twice as many
    micro-batches, and so on."""
    micro_batches: int = 32
    """Micro-batches of an optimizer step, of all processes together."""
    max_length: int | None = None
    """Longest trajectory to train on, in tokens; longer ones are cut after a step. Default: the model's context, at
    most 4096. Solutions are scored up to the model's context."""
    template: Template = field(default_factory=lambda: Template("[INST] {prompt} [/INST]", "\n{step} ", "[PRM]"))
    read: ReadOptions = field(default_factory=lambda: ReadOptions(skip_bad=True))
    prefix_tree: bool = False
    """Train on prefix trees: the same gradient of a batch from fewer tokens, but batches then hold whole questions. The
    pools are always scored as prefix trees."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """As for `pqm-fast train`."""
    seed: int = 0
    """Seed for the order of the data and for new weights."""

    device: str = "auto"
    """cpu or cuda. auto: cuda if there is a GPU, otherwise cpu."""
    dtype: DType = "auto"
    """As for `pqm-fast train`."""
    attention: Attention = "auto"
    """As for `pqm-fast train`."""
    score_tokens: int = 16384
    """Tokens of a forward pass when the pools are scored."""
    save_every: int = 100
    """Optimizer steps between resumable checkpoints. The newest one of each training is kept."""
    cache_dir: str | None = None
    """Folder for tokenised data. Default: pqm-fast in the user's cache folder."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise PQMError(f"protocol: {self.protocol!r} is not known; choose one of {', '.join(PROTOCOLS)}")
        for name in ("losses", "n", "pools", "data"):
            if not getattr(self, name):
                raise PQMError(f"{name}: none is given; give at least one")
        for name in ("losses", "zetas", "n"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise PQMError(f"{name}: one is given twice in {' '.join(map(str, values))}; give each once")
        if any(LOSSES[loss].uses_zeta for loss in self.losses) and not self.zetas:
            raise PQMError("zetas: none is given, and a loss has a margin; give at least one")
        if min(self.n) < 1:
            raise PQMError(f"n: {min(self.n)} was given; it must be at least 1")
        for name in ("micro_batches", "score_tokens"):
            if getattr(self, name) < 1:
                raise PQMError(f"{name}: {getattr(self, name)} was given; it must be at least 1")

    @property
    def folder(self) -> Path:
        return Path(self.out)
