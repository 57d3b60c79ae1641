"""The trainings of a reproduction, each as options of `pqm-fast train`.

The facts are from the code of the paper, github.com/WindyLee0822/Process_Q_Model (train_main.py, bon_eval_hf.py). Its
optimizer step takes 32 batches (8 GPUs, 4 each) of 64 trajectories of up to 512 tokens, 24 of up to 1,024 or 8 longer
ones: 8,508 batches, 266 steps in a pass, and so the 532 steps of the published checkpoints.
docs/how-to/reproduce-pqm.md says what differs here.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from pqm_kernels.losses import LOSSES

from pqm_fast.common.yaml_file import read_yaml
from pqm_fast.errors import PQMError
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.run_files import CONFIG_FILE


@dataclass(frozen=True)
class Member:
    """One training: a loss, and its margin if it has one."""

    loss: str
    zeta: float | None

    @property
    def name(self) -> str:
        """For files and folders."""
        return self.loss if self.zeta is None else f"{self.loss}-zeta{self.zeta:g}"

    @property
    def title(self) -> str:
        """For readers."""
        return self.loss if self.zeta is None else f"{self.loss} (zeta {self.zeta:g})"

    def run(self, config: ReproduceConfig) -> Path:
        """The run folder."""
        return config.folder / "runs" / self.name

    def scores(self, config: ReproduceConfig, pool: str) -> Path:
        """The file of the scores of a pool."""
        return config.folder / "scores" / self.name / f"{pool}.jsonl"

    def aggregate(self, config: ReproduceConfig) -> str:
        """How a solution's score is made from those of its steps."""
        return "last" if LOSSES[self.loss].last_step_only else config.aggregate


def members(config: ReproduceConfig) -> list[Member]:
    """The trainings, in the order of the losses and margins."""
    return [
        Member(loss, zeta) for loss in config.losses for zeta in (config.zetas if LOSSES[loss].uses_zeta else (None,))
    ]


def train_config(config: ReproduceConfig, member: Member, processes: int = 1) -> TrainConfig:
    """The options of a training in so many processes.

    Raises PQMError if the micro-batches of an optimizer step cannot be divided evenly among the processes.
    """
    accumulation, left_over = divmod(config.micro_batches, processes)
    if left_over:
        raise PQMError(
            f"micro_batches: {config.micro_batches} cannot be divided evenly among {processes} processes; give a "
            "multiple of their number"
        )
    return TrainConfig(
        model=config.model,
        data=config.data,
        out=str(member.run(config)),
        loss=member.loss,
        zeta=TrainConfig.zeta if member.zeta is None else member.zeta,
        read=config.read,
        template=config.template,
        max_length=config.max_length,
        cache_dir=config.cache_dir,
        eval_fraction=0.0,  # all of the data is trained on, as published
        eval_every=0,
        micro_batch_tokens=config.micro_batch_tokens,
        prefix_tree=config.prefix_tree,
        accumulation=accumulation,
        epochs=config.epochs,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        warmup_fraction=config.warmup_fraction,
        seed=config.seed,
        device=config.device,
        dtype=config.dtype,
        optimizer=config.optimizer,
        attention=config.attention,
        save_every=config.save_every,
        keep_checkpoints=1,
        progress=config.progress,
    )


def resumed(config: TrainConfig) -> TrainConfig:
    """The options to resume the run in the folder of `config` with, in any number of processes.

    An optimizer step keeps its size: `accumulation` counts the micro-batches of the processes that the run began with.
    """
    file = config.folder / CONFIG_FILE
    stored = read_yaml(file)
    if not isinstance(stored, dict) or not isinstance(stored.get("accumulation"), int):
        raise PQMError(f"{file}: damaged, so the run cannot be resumed; delete {config.out} to train again")
    return replace(config, accumulation=stored["accumulation"], resume=True)
