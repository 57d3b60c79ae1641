"""`pqm-fast demo`: trains a PQM on the embedded arithmetic world and shows whether it picks better solutions.

It follows the whole path, with the functions of the other commands: files -> train -> checkpoint -> score -> Best-of-N.
"""

import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqm_fast.arithmetic.demo_results import draw_best_of_16, results_table, summarise
from pqm_fast.common.combination import parse_loss
from pqm_fast.common.files import write_json
from pqm_fast.common.lock import is_empty, locked
from pqm_fast.data.encode import Template
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.run import EvaluateConfig, evaluate
from pqm_fast.scoring.options import ScoreConfig, ScoringOptions
from pqm_fast.train.config import TrainConfig

if TYPE_CHECKING:
    from pqm_fast.arithmetic.world import World


@dataclass(frozen=True)
class DemoConfig:
    """Train small verifiers on arithmetic with exact step labels, and compare Best-of-16 with majority vote."""

    out: str = "runs/demo"
    """Folder for the world, the runs and the picture."""
    losses: tuple[str, ...] = ("bce+sibling", "rank")
    """Losses to train with, one after the other: any of `pqm-fast train --loss`, or one with a --compare, as
    bce+sibling."""
    compare_weight: float = 3.0
    """Factor of the comparison in a loss such as bce+sibling."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; with several, the figures are means over them."""
    steps: int = 1000
    """Optimizer steps of each run."""
    problems: int = 4000
    """Training problems; each of six policies solves each of them twice."""
    test_problems: int = 150
    """Held-out problems, with 16 candidates from each of seven policies."""
    world_seed: int = 1
    """Seed of the problems and of the policies' weak spots. The default learning rate was chosen on world 0."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    micro_batch_tokens: int = 1536
    """Tokens per optimizer step, those that the solutions of a question share counted once."""
    progress: bool = True
    """Show the progress bars."""

    def __post_init__(self) -> None:
        for name in ("losses", "seeds"):
            if not getattr(self, name):
                raise PQMError(f"{name}: give at least one")
        for loss in self.losses:
            parse_loss(loss)


def demo(config: DemoConfig) -> dict[str, Any]:
    """Returns the results by loss (see `demo_results`). Raises PQMError if `out` is not empty."""
    with locked(Path(config.out), "demo", folder=True):
        return _demo(config)


def _demo(config: DemoConfig) -> dict[str, Any]:
    from pqm_fast.arithmetic.world import write_world
    from pqm_fast.common.environment import describe

    folder = Path(config.out)
    if not is_empty(folder):
        raise PQMError(f"{folder}: is not empty; delete it or choose another --out")
    world = write_world(
        folder / "world", problems=config.problems, test_problems=config.test_problems, seed=config.world_seed
    )
    results: dict[str, Any] = {}
    for loss in dict.fromkeys(config.losses):
        runs = [_train_and_evaluate(config, world, loss, seed) for seed in config.seeds]
        results[loss] = summarise(runs)
    write_json(folder / "result.json", {"config": asdict(config), **describe(), "losses": results})
    picture = draw_best_of_16(folder, results, len(config.seeds))
    print("\n" + results_table(results))
    print(f"\nBest-of-16 against majority vote: {picture}")
    for run in sorted(folder.glob("*-seed*")):
        print(f"checkpoint, curve (training.png), metrics, scored solutions and their evaluation: {run}")
    print("\nOne page with all curves, and solutions with every step's Q-value beside its label:")
    print(f"  {_report_command(folder)}")
    return results


def _train_and_evaluate(config: DemoConfig, world: "World", loss: str, seed: int) -> dict[str, Any]:
    from pqm_fast.scoring.run import score
    from pqm_fast.train.loop import train

    combination = parse_loss(loss)
    run = TrainConfig(
        model=str(world.model),
        data=(str(world.train),),
        out=str(Path(config.out) / f"{loss}-seed{seed}"),
        loss=combination.loss,
        compare=combination.compare or "none",
        compare_weight=config.compare_weight if combination.compare else 1.0,
        # the model learns faster here if it reads the last token of a step than with an added step token
        template=Template(step_token="last"),
        micro_batch_tokens=config.micro_batch_tokens,
        prefix_tree=True,
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        warmup_steps=50,
        eval_every=max(1, config.steps // 8),
        eval_limit=500,
        save_every=0,
        seed=seed,
        device="cpu",
        cache_dir=str(Path(config.out) / "world" / "tokens"),
        progress=config.progress,
    )
    started = time.perf_counter()
    train(run)
    seconds = time.perf_counter() - started
    scored = score(
        ScoreConfig(
            model=run.out,
            data=(str(world.pool),),
            out=str(run.folder / "scored.jsonl"),
            scoring=ScoringOptions(device="cpu", progress=config.progress),
        )
    )
    evaluation = evaluate(
        EvaluateConfig(
            data=(str(scored),),
            out=str(run.folder / "evaluation.json"),
            aggregate=("min", "last", "mean", "softmin", "prod"),
            n=(1, 2, 4, 8, 16),
        ),
        quiet=True,  # it would print 120 lines; the table at the end has what matters
    )
    return {
        "seed": seed,
        "training_seconds": seconds,
        "policies": {
            name: {
                "mean_accuracy": pool["mean_accuracy"]["mean"],
                "majority_vote": pool["majority_vote"]["mean"],
                "best_of_16": pool["best_of_n"]["min"]["16"]["mean"],
                "pass_at_16": pool["pass_at_n"]["16"]["mean"],
            }
            for name, pool in evaluation["policies"].items()
        },
    }


def _report_command(folder: Path) -> str:
    """The command as the user's shell can find it: after `make demo`, .venv/bin is not in PATH."""
    program = "pqm-fast" if shutil.which("pqm-fast") else os.path.relpath(Path(sys.executable).with_name("pqm-fast"))
    return shlex.join([program, "report", str(folder), "--out", str(folder / "report.html")])
