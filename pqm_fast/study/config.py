"""Every option of `pqm-fast study`. The defaults are the reduced grid, for two CPU cores."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from pqm_fast.common.options import Attention, DType, Layers, Loss
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.run import Aggregator
from pqm_fast.study.labels import parse_labels


@dataclass(frozen=True)
class StudyConfig:
    """Train with every loss under the same conditions and see whose Q-values pick the better solutions.

    The grid: every loss with every kind of labels on the first model, every loss on every other model with the first
    kind of labels, and rank with every zeta. At each point the learning rate and the aggregator are chosen on the
    tuning pool with the first seed; then the other seeds are trained.
    """

    out: str = "runs/study"
    """Folder for the trials, results.json, study.md and pictures. The same command goes on where it stopped, and more
    losses, labels, models, rates or seeds may be added."""

    losses: tuple[Loss, ...] = ("rank", "rank-theory", "rank-first-error", "bce", "mse", "orm")
    """What is compared; pairwise and crm are there too."""
    baseline: Loss = "bce"
    """The loss that every other one is compared with, trial by trial and question by question."""
    zeta: float = 4.0
    """Margin of rank, rank-theory and pairwise."""
    zetas: tuple[float, ...] = (0.0, 16.0)
    """Other margins, for rank on the first model with the first labels."""
    labels: tuple[str, ...] = ("given", "flip:0.2")
    """given: as the data has them (exact in the arithmetic world). first-error: without those of the steps after the
    first wrong one. flip:P: each one inverted with probability P. monte-carlo: made by `pqm-fast annotate` (the
    arithmetic world only)."""
    models: tuple[str, ...] = ("llama",)
    """Model folders or hub ids; for the arithmetic world llama, qwen2 and mistral, small and without weights."""
    learning_rates: tuple[float, ...] = (1e-3, 2e-3)
    """Rates that each loss tries at each point."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds: the order of the data and new weights."""

    data: tuple[str, ...] = ()
    """Step-labelled records to train on. Default: the embedded arithmetic world."""
    tuning: tuple[str, ...] = ()
    """Pools of candidate solutions that rates and aggregators are chosen on; none of the questions in --test."""
    test: tuple[str, ...] = ()
    """Pools of candidate solutions that the figures are of; with step labels also step metrics."""
    read: ReadOptions = field(default_factory=ReadOptions)

    n: int = 16
    """Candidates that one is picked from, for each question and policy; those with fewer are left out."""
    aggregate: tuple[Aggregator, ...] = get_args(Aggregator)
    """Aggregators to choose from."""

    template: Template = field(default_factory=lambda: Template(step_token="last"))
    steps: int = 600
    """Optimizer steps of each trial."""
    micro_batch_tokens: int = 1536
    """Tokens of one forward pass."""
    accumulation: int = 1
    """Micro-batches of one optimizer step."""
    warmup_steps: int = 50
    """Steps of linear warm-up, then a cosine."""
    max_length: int | None = None
    """Longest trajectory in tokens. Default: the model's context, at most 4096."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank. 0: every weight."""
    prefix_tree: bool = False
    """Compute what solutions of one question share once."""
    device: str = "auto"
    """cuda if there is one, otherwise cpu."""
    dtype: DType = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    attention: Attention = "auto"
    """As for `pqm-fast train`."""
    layers: Layers = "auto"
    """As for `pqm-fast train`; compilation takes longer than it saves where models are small."""
    save_every: int = 0
    """Optimizer steps between resumable checkpoints of a trial (0: an interrupted trial starts anew)."""
    keep_weights: bool = False
    """Keep the checkpoint of every trial; by default its weights are removed once its pools are scored."""
    workers: int = 0
    """Trials at a time, each in a process of its own. 0: as many as there are CPU cores, 1 on a GPU."""

    world_seed: int = 1
    """Of the arithmetic world's problems and weak spots."""
    problems: int = 4000
    """Its training problems; each is solved by six policies, twice."""
    tuning_problems: int = 50
    """Its problems to choose rates and aggregators on, N candidates from each of seven policies."""
    test_problems: int = 150
    """Its problems to test on."""
    completer: str = "mixed"
    """Its policy that writes the rollouts of monte-carlo labels."""
    rollouts: int = 4
    """Rollouts behind each step for monte-carlo labels."""
    progress: bool = True
    """Show the progress bar."""

    def __post_init__(self) -> None:
        for name in ("losses", "labels", "models", "learning_rates", "seeds", "aggregate"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise PQMError(f"{name}: {', '.join(map(str, values)) or 'none'} given; name at least one, each once")
        given = [bool(files) for files in (self.data, self.tuning, self.test)]
        if any(given) and not all(given):
            raise PQMError("data, tuning, test: give all three, or none of them for the arithmetic world")
        for text in self.labels:
            if parse_labels(text).kind == "monte-carlo" and self.data:
                raise PQMError(
                    "labels monte-carlo: only in the arithmetic world; for your own data write them with "
                    "`pqm-fast annotate`, and make a second study of them"
                )
        if self.baseline not in self.losses:
            raise PQMError(f"baseline {self.baseline}: is not among the losses {', '.join(self.losses)}")
        counts = ("n", "steps", "problems", "tuning_problems", "test_problems", "rollouts")
        for name, least in (*((name, 1) for name in counts), ("workers", 0)):
            if getattr(self, name) < least:
                raise PQMError(f"{name}: {getattr(self, name)} was given; it must be at least {least}")
        for name, values, above in (
            ("learning_rates", self.learning_rates, True),
            ("zetas", (self.zeta, *self.zetas), False),
            ("seeds", self.seeds, False),
        ):
            if not all(0 <= value < math.inf and (value or not above) for value in values):
                allowed = "above 0" if above else "from 0 on"
                raise PQMError(f"{name}: {', '.join(map(str, values))} given; each must be a finite number {allowed}")

    @property
    def folder(self) -> Path:
        return Path(self.out)
