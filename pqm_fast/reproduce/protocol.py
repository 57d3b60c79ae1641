"""The trainings of a reproduction, each as options of `pqm-fast train`.

The facts are from the code of the paper, github.com/WindyLee0822/Process_Q_Model (train_main.py, bon_eval_hf.py). Its
optimizer step takes 32 batches (8 GPUs, 4 each) of 64 trajectories of up to 512 tokens, 24 of up to 1,024 or 8 longer
ones: 8,508 batches, 266 steps in a pass, and so the 532 steps of the published checkpoints.
docs/how-to/reproduce-pqm.md says what differs here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pqm_kernels.losses import LOSSES

from pqm_fast.common.names import digits
from pqm_fast.common.yaml_file import read_yaml
from pqm_fast.errors import PQMError
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.metrics_file import METRICS_FILE, read_starts
from pqm_fast.train.run_files import CONFIG_FILE, complete_checkpoints, is_trained
from pqm_fast.train.stored_options import changed_options


@dataclass(frozen=True)
class Member:
    """One training: a loss, and its margin if it has one."""

    loss: str
    zeta: float | None

    @property
    def name(self) -> str:
        """For files and folders."""
        return self.loss if self.zeta is None else f"{self.loss}-zeta{digits(self.zeta)}"

    @property
    def title(self) -> str:
        """For readers."""
        return self.loss if self.zeta is None else f"{self.loss} (zeta {digits(self.zeta)})"

    def run(self, config: ReproduceConfig) -> Path:
        """The run folder."""
        return config.folder / "runs" / self.name

    def scores(self, config: ReproduceConfig, pool: str) -> Path:
        """The file of the scores of a pool."""
        return config.folder / "scores" / self.name / f"{pool}.jsonl"

    def scored_from(self, config: ReproduceConfig, pool: str) -> Path:
        """The file that says which model and pool the scores are from."""
        return self.scores(config, pool).with_name(f"{pool}.scored-from.json")

    def aggregate(self, config: ReproduceConfig) -> str:
        """How a solution's score is made from those of its steps."""
        return "last" if LOSSES[self.loss].last_step_only else config.aggregate


def members(config: ReproduceConfig) -> list[Member]:
    """The trainings, in the order of the losses and margins."""
    return [
        Member(loss, zeta) for loss in config.losses for zeta in (config.zetas if LOSSES[loss].uses_zeta else (None,))
    ]


def baseline_of(config: ReproduceConfig, trainings: Sequence[Member]) -> Member | None:
    """The training that the others are compared with; None if there is one alone.

    Raises PQMError if `config.baseline` names none of several trainings, or more than one.
    """
    if len(trainings) == 1:
        return None
    for member in trainings:
        if member.name == config.baseline:
            return member
    of_loss = [member for member in trainings if member.loss == config.baseline]
    if len(of_loss) == 1:
        return of_loss[0]
    found = "is not among the trainings" if not of_loss else "has several margins"
    names = ", ".join(member.name for member in of_loss or trainings)
    raise PQMError(f"baseline: {config.baseline} {found}; give --baseline one of {names}")


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


def begins(config: ReproduceConfig, member: Member) -> bool:
    """Whether a training has nothing to go on from: neither a finished model nor a checkpoint."""
    folder = member.run(config)
    return not is_trained(folder) and not complete_checkpoints(folder / "checkpoints")


def check_run(config: ReproduceConfig, member: Member) -> None:
    """Raises PQMError if the folder of a training holds another one. It may have run on another device, and in any
    number of processes; an optimizer step must have as many micro-batches."""
    if begins(config, member):
        return
    options = train_config(config, member)
    changed = changed_options(options)
    free = {"device", "accumulation"}
    free |= set() if config.max_steps is None else {"epochs"}
    free |= {"zeta"} if member.zeta is None else set()
    differing = {name: values for name, values in changed.items() if name not in free}
    # without a checkpoint, a run may have been started several times, and the last of them counts
    starts = [row for row in read_starts(options.folder / METRICS_FILE) if row["step"] == 0]
    if not starts or not isinstance(starts[-1].get("world"), int):
        raise PQMError(f"{options.folder / METRICS_FILE}: does not say how many processes began the run")
    micro_batches = resumed(options).accumulation * starts[-1]["world"]
    if micro_batches != config.micro_batches:
        differing["micro_batches"] = micro_batches, config.micro_batches
    if differing:
        values = ", ".join(f"{name} ({then!r} then, {now!r} now)" for name, (then, now) in differing.items())
        raise PQMError(
            f"{options.out}: holds a training with other options: {values}; give them as they were, move that folder "
            "away, or choose another --out"
        )
