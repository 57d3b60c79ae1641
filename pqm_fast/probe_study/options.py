"""The options of `pqm-fast probe-study`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pqm_kernels.losses import LOSSES

from pqm_fast.common.combination import parse_loss
from pqm_fast.common.options import Attention, DType
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.probe.options import ProbeConfig
from pqm_fast.study.relabel import parse_label_kind


@dataclass(frozen=True)
class ProbeStudyConfig:
    """Compare losses by heads on the hidden states of a frozen decoder, as `pqm-fast probe` trains them.

    The records are split by question: to train on, to tune on and to test on. For each kind of training labels, each
    loss chooses its layer, then its margin, weight and learning rate, by AUROC on the tuning questions with the first
    seed. Then the other seeds are trained, and all are tested.
    """

    model: str
    """Folder or hub id of a decoder."""
    data: tuple[str, ...]
    """Records with exact step labels."""
    out: str
    """Folder for the split records, the heads, results.json, study.md and pictures. The same command continues an
    interrupted study."""
    group_by: Literal["question", "id"] = "question"
    """What must not be on two sides of the split: records of the same question, or with the same id up to its last
    slash (variants of one problem whose texts differ, as in PRMBench)."""
    test_fraction: float = 0.25
    """Share of the groups to test on."""
    tuning_fraction: float = 0.2
    """Share of the other groups to tune on."""
    split_seed: int = 0
    """Seed of the split."""
    processbench: tuple[str, ...] = ()
    """Records with the first error, in ProcessBench's form, to test on. Their threshold is the best one on the tuning
    questions of --data."""
    pools: tuple[str, ...] = ()
    """Pools of candidate solutions. A fifth of their questions chooses the aggregator, the others test."""

    losses: tuple[str, ...] = (*LOSSES, "bce+sibling")
    """Losses to compare: any of `pqm-fast train --loss`, and combinations, as bce+sibling."""
    baseline: str = "bce"
    """The loss that the others are compared with, seed by seed and question by question."""
    labels: tuple[str, ...] = ("given", "first-error", "flip:0.1", "flip:0.2")
    """Kinds of labels to train with: given (exact), first-error (none after the first wrong step), flip:P (each label
    inverted with probability P). The labels of the tuning questions are exact."""
    zetas: tuple[float, ...] = (4.0, 8.0, 16.0)
    """Margins. The layer is chosen with the middle one of all combinations of these and the next two."""
    compare_weights: tuple[float, ...] = (1.0, 3.0)
    """Weights of the comparison in combinations."""
    learning_rates: tuple[float, ...] = (2e-3, 8e-3)
    """Learning rates."""
    layers: tuple[int, ...] = ()
    """Decoder layers, as for `pqm-fast probe`."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the batches and their order."""
    batch_steps: int = 1024
    """Steps in an optimizer step, of whole questions."""
    epochs: int = 200
    """The most passes over the data."""
    patience: int = 4
    """A head stops after so many passes without a lower loss on the tuning questions."""

    read: ReadOptions = field(default_factory=ReadOptions)
    template: Template = field(default_factory=lambda: Template(step_token="last"))
    max_length: int | None = None
    """Longest trajectory in tokens. Default: the model's context, at most 4096."""
    cache_dir: str | None = None
    """Folder for tokenised data and hidden states. Default: pqm-fast in the user's cache folder."""
    device: str = "auto"
    """cpu or cuda. auto: cuda if there is a GPU, otherwise cpu."""
    dtype: DType = "auto"
    """Data type of the states, as for `pqm-fast probe`."""
    attention: Attention = "auto"
    """Attention kernels, as for `pqm-fast probe`."""
    max_tokens: int = 8192
    """Tokens of one forward pass."""
    progress: bool = True
    """Show the progress bars."""

    def __post_init__(self) -> None:
        for loss in (*self.losses, self.baseline):
            parse_loss(loss)
        if self.baseline not in self.losses:
            raise PQMError(f"baseline: {self.baseline} is not among the losses; add it, or choose another --baseline")
        for labels in self.labels:
            if parse_label_kind(labels).name == "monte-carlo":
                raise PQMError("labels monte-carlo: give records that `pqm-fast annotate` has labelled as --data")
        for name in ("test_fraction", "tuning_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise PQMError(f"{name}: {getattr(self, name)} was given; it must be between 0 and 1")
        self.probe(("checked",), ("checked",))

    def probe(self, training: tuple[str, ...], tuning: tuple[str, ...]) -> ProbeConfig:
        """The options of a probe of these records."""
        return ProbeConfig(
            model=self.model,
            data=training,
            eval_data=tuning,
            out=self.out,
            losses=self.losses,
            zetas=self.zetas,
            compare_weights=self.compare_weights,
            learning_rates=self.learning_rates,
            layers=self.layers,
            seeds=self.seeds,
            batch_steps=self.batch_steps,
            epochs=self.epochs,
            patience=self.patience,
            read=self.read_own,
            template=self.template,
            max_length=self.max_length,
            cache_dir=self.cache_dir,
            device=self.device,
            dtype=self.dtype,
            attention=self.attention,
            max_tokens=self.max_tokens,
            progress=self.progress,
        )

    @property
    def read_own(self) -> ReadOptions:
        """How the files that the study has written are read: their labels and fields need no options."""
        return ReadOptions(skip_bad=self.read.skip_bad)

    @property
    def folder(self) -> Path:
        return Path(self.out)
