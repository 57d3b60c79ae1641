"""The options of `pqm-fast study`. The defaults are a reduced grid for two CPU cores."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pqm_fast.common.combination import parse_loss
from pqm_fast.common.options import Attention, DType, Layers, check_noise
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import TEMPERATURE, check_temperature
from pqm_fast.evaluate.run import Aggregator
from pqm_fast.study.relabel import parse_label_kind


@dataclass(frozen=True)
class StudyConfig:
    """Train with every loss under the same conditions and compare how well their Q-values pick solutions.

    The grid: every loss with every kind of labels on the first model, every loss on every other model with the first
    kind of labels, and rank with every zeta. At each point the learning rate and the aggregator are chosen on the
    tuning pool with the first seed; then the other seeds are trained.
    """

    out: str = "runs/study"
    """Folder for the trials, results.json, study.md and pictures. Run the same command again to continue an interrupted
    study; losses, labels, models, rates, margins and seeds can be added."""

    losses: tuple[str, ...] = ("rank", "rank-theory", "rank-first-error", "bce", "mse", "orm")
    """Losses to compare: any of `pqm-fast train --loss`, and combinations with one of its --compare, as bce+sibling."""
    baseline: str = "bce"
    """The loss that the others are compared with, seed by seed and question by question."""
    zeta: float = 4.0
    """Margin of rank, rank-theory, pairwise, group-rank and group-contrastive."""
    zetas: tuple[float, ...] = (0.0, 16.0)
    """Other margins to try, for rank on the first model with the first kind of labels."""
    labels: tuple[str, ...] = ("given", "flip:0.2")
    """given: the labels in the data (exact in the arithmetic world). first-error: none after the first wrong step.
    flip:P: each label inverted with probability P. monte-carlo: made by `pqm-fast annotate` (only in the arithmetic
    world)."""
    models: tuple[str, ...] = ("llama",)
    """Model folders or hub ids; in the arithmetic world llama, qwen2 and mistral, small and with random weights."""
    learning_rates: tuple[float, ...] = (1e-3, 2e-3)
    """Learning rates that each loss tries at each point of the grid."""
    compare_weights: tuple[float, ...] = (1.0, 3.0)
    """Weights of the added comparison that each combination tries with each of its rates."""
    compare_learning_rates: tuple[float, ...] = ()
    """Learning rates of combinations, so few that rates times weights are as many trials as other losses have. Default:
    those of the other losses."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds, for the order of the data and for new weights."""

    data: tuple[str, ...] = ()
    """Step-labelled records to train on. Default: the embedded arithmetic world."""
    tuning: tuple[str, ...] = ()
    """Pools of candidate solutions to choose rates and aggregators on; they share no question with --test."""
    test: tuple[str, ...] = ()
    """Pools of candidate solutions to compare the losses on; with step labels there are step metrics too."""
    read: ReadOptions = field(default_factory=ReadOptions)

    n: int = 16
    """Candidates to pick one from, for each question and policy. A policy with fewer candidates of a question is left
    out there."""
    aggregate: tuple[Aggregator, ...] = get_args(Aggregator)
    """Aggregators to choose from."""
    temperature: float = TEMPERATURE
    """Temperature of the aggregator softmin and of the loss listwise-softmin, in logits."""
    noise: tuple[float, float] | Literal["auto"] = "auto"
    """Rates of wrong labels for first-error-noisy, as for `pqm-fast train`. auto: estimated from training labels."""

    template: Template = field(default_factory=lambda: Template(step_token="last"))
    steps: int = 600
    """Optimizer steps of each trial."""
    micro_batch_tokens: int = 1536
    """Tokens of one forward pass."""
    accumulation: int = 1
    """Micro-batches in one optimizer step."""
    warmup_steps: int = 50
    """Steps of linear warm-up, before the cosine schedule."""
    max_length: int | None = None
    """Longest trajectory in tokens. Default: the model's context, at most 4096."""
    lora_rank: int = 0
    """Rank of the low-rank adapters to train. 0: train every weight."""
    prefix_tree: bool = False
    """Compute the shared beginnings of solutions to one question once. Recommended if any loss compares solutions:
    batches then hold whole questions for every loss, so that the conditions are equal."""
    device: str = "auto"
    """auto: cuda if there is a GPU, otherwise cpu."""
    dtype: DType = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    attention: Attention = "auto"
    """As for `pqm-fast train`."""
    layers: Layers = "auto"
    """As for `pqm-fast train`; for small models compilation takes longer than it saves."""
    save_every: int = 0
    """Optimizer steps between resumable checkpoints of a trial. 0: an interrupted trial starts again from step 0."""
    keep_weights: bool = False
    """Keep the weights of every trial. By default they are removed once the pools are scored."""
    workers: int = 0
    """Trials to run at the same time, each in its own process. 0: one per CPU core, or 1 on a GPU."""

    world_seed: int = 1
    """Seed of the arithmetic world: its problems and its policies' weak spots."""
    problems: int = 4000
    """Training problems of the arithmetic world; each of six policies solves each problem twice."""
    tuning_problems: int = 50
    """Problems of the arithmetic world to choose rates and aggregators on; each of seven policies has N candidates."""
    test_problems: int = 150
    """Problems of the arithmetic world to test on, with N candidates as well."""
    completer: str = "mixed"
    """Policy of the arithmetic world that writes the rollouts for monte-carlo labels."""
    rollouts: int = 4
    """Rollouts from each step for monte-carlo labels."""
    progress: bool = True
    """Show the progress bar."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        for name in ("losses", "labels", "models", "learning_rates", "compare_weights", "seeds", "aggregate"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise PQMError(f"{name}: {', '.join(map(str, values)) or 'none'} given; name at least one, each once")
        has_files = [bool(files) for files in (self.data, self.tuning, self.test)]
        if any(has_files) and not all(has_files):
            raise PQMError("data, tuning, test: pass all three, or none of them for the arithmetic world")
        for text in self.labels:
            if parse_label_kind(text).name == "monte-carlo" and self.data:
                raise PQMError(
                    "labels monte-carlo: available only in the arithmetic world; for your own data, write the labels "
                    "with `pqm-fast annotate` and run a second study on them"
                )
        if self.baseline not in self.losses:
            raise PQMError(f"baseline {self.baseline}: is not among the losses {', '.join(self.losses)}")
        counts = ("n", "steps", "problems", "tuning_problems", "test_problems", "rollouts")
        for name, minimum in (*((name, 1) for name in counts), ("workers", 0)):
            if getattr(self, name) < minimum:
                raise PQMError(f"{name}: {getattr(self, name)} was given; it must be at least {minimum}")
        for name, values, zero_allowed in (
            ("learning_rates", self.learning_rates, False),
            ("compare_learning_rates", self.compare_learning_rates, False),
            ("compare_weights", self.compare_weights, False),
            ("zetas", (self.zeta, *self.zetas), True),
            ("seeds", self.seeds, True),
        ):
            if not all(0 <= value < math.inf and (value or zero_allowed) for value in values):
                allowed = "of at least 0" if zero_allowed else "above 0"
                raise PQMError(f"{name}: {', '.join(map(str, values))} given; each must be a finite number {allowed}")
        check_noise(self.noise)
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Every loss must have the same number of trials to choose from, or the combinations would be favoured."""
        combinations = [text for text in self.losses if parse_loss(text).compare is not None]
        rates, weights = self.compare_learning_rates or self.learning_rates, self.compare_weights
        if len(set(rates)) < len(rates):
            raise PQMError(f"compare_learning_rates: {', '.join(map(str, rates))} given; name each once")
        if combinations and len(rates) * len(weights) != len(self.learning_rates):
            raise PQMError(
                f"losses {', '.join(combinations)}: {len(rates)} rates times {len(weights)} weights are "
                f"{len(rates) * len(weights)} trials to choose from, but other losses have {len(self.learning_rates)}; "
                "give --compare-learning-rates, --compare-weights and --learning-rates so that the numbers are equal, "
                "as 1e-3 2e-3, 1 3 and 5e-4 1e-3 2e-3 4e-3"
            )

    @property
    def folder(self) -> Path:
        return Path(self.out)
