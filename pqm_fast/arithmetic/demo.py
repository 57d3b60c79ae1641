"""`pqm-fast demo`: train a PQM on the embedded arithmetic world and see whether it picks better solutions.

The whole path, through the same functions as the other commands: files -> train -> checkpoint -> score -> Best-of-N.
"""

import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqm_fast.common.files import atomic_file, write_json
from pqm_fast.common.lock import is_empty, locked
from pqm_fast.common.options import Loss
from pqm_fast.data.encode import Template
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.run import EvaluateConfig, evaluate
from pqm_fast.scoring.options import ScoreConfig, ScoringOptions
from pqm_fast.train.config import TrainConfig

if TYPE_CHECKING:
    from pqm_fast.arithmetic.world import World


@dataclass(frozen=True)
class DemoConfig:
    """Train a small PQM on arithmetic with exact step labels, and compare Best-of-16 with majority vote."""

    out: str = "runs/demo"
    """Folder for the world, the runs and the picture."""
    loss: Loss = "rank"
    """Loss to train with."""
    compare: tuple[Loss, ...] = ()
    """Other losses to train beside it, on the same data."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; with several, figures are means over them."""
    steps: int = 2900
    """Optimizer steps of each run."""
    problems: int = 4000
    """Training problems; each is solved by six policies, twice."""
    test_problems: int = 150
    """Held-out problems, 16 candidates from each of seven policies."""
    world_seed: int = 1
    """Of the problems and of the policies' weak spots. The training options here were chosen on world 0."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    micro_batch_tokens: int = 1536
    """Tokens of one optimizer step: about 64 trajectories."""
    progress: bool = True
    """Show the progress bars."""


def demo(config: DemoConfig) -> dict[str, Any]:
    """Returns {loss: {"policies": {policy: FIGURES}, "training_seconds", "runs"}}: means, and each seed's run."""
    if not config.seeds:
        raise PQMError("seeds: give at least one")
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
    for loss in dict.fromkeys((config.loss, *config.compare)):
        runs = [_train_and_evaluate(config, world, loss, seed) for seed in config.seeds]
        results[loss] = {
            "runs": runs,
            "training_seconds": _mean([run["training_seconds"] for run in runs]),
            "policies": {
                policy: {name: _mean([run["policies"][policy][name] for run in runs]) for name in FIGURES}
                for policy in runs[0]["policies"]
            },
        }
    write_json(folder / "result.json", {"config": asdict(config), **describe(), "losses": results})
    picture = _draw(folder, results, len(config.seeds))
    print("\n" + _table(results))
    print(f"\nBest-of-16 against majority vote: {picture}")
    for run in sorted(folder.glob("*-seed*")):
        print(f"checkpoint, curve (training.png), metrics, scored solutions and their evaluation: {run}")
    print(f"\nOne page with all curves, and solutions with every step's Q-value beside its label:\n  {_report(folder)}")
    return results


FIGURES = ("mean_accuracy", "majority_vote", "best_of_16", "pass_at_16")


def _train_and_evaluate(config: DemoConfig, world: "World", loss: Loss, seed: int) -> dict[str, Any]:
    run = TrainConfig(
        model=str(world.model),
        data=(str(world.train),),
        out=str(Path(config.out) / f"{loss}-seed{seed}"),
        loss=loss,
        # the last token of a step is learned faster here than a token of its own
        template=Template(step_token="last"),
        micro_batch_tokens=config.micro_batch_tokens,
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
    from pqm_fast.scoring.run import score
    from pqm_fast.train.loop import train

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
    found = evaluate(
        EvaluateConfig(
            data=(str(scored),),
            out=str(run.folder / "evaluation.json"),
            aggregate=("min", "last", "mean", "prod"),
            n=(1, 2, 4, 8, 16),
        ),
        quiet=True,  # 120 lines; the table at the end has what matters
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
            for name, pool in found["policies"].items()
        },
    }


def _report(folder: Path) -> str:
    """The command as the user's shell will find it: `make demo` leaves .venv/bin out of PATH."""
    program = "pqm-fast" if shutil.which("pqm-fast") else os.path.relpath(Path(sys.executable).with_name("pqm-fast"))
    return shlex.join([program, "report", str(folder), "--out", str(folder / "report.html")])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _table(results: dict[str, Any]) -> str:
    losses = list(results)
    first = results[losses[0]]["policies"]
    head = [
        "policy",
        "mean accuracy",
        "majority vote",
        *(f"best of 16, {loss}" for loss in losses),
        "any of 16 right",
    ]
    rows = [head]
    for policy, own in first.items():
        best = [f"{results[loss]['policies'][policy]['best_of_16']:.3f}" for loss in losses]
        rows.append(
            [
                policy,
                f"{own['mean_accuracy']:.3f}",
                f"{own['majority_vote']:.3f}",
                *best,
                f"{own['pass_at_16']:.3f}",
            ]
        )
    average = [_mean([float(row[i]) for row in rows[1:]]) for i in range(1, len(head))]
    rows.append(["average", *(f"{value:.3f}" for value in average)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    seconds = ", ".join(f"{loss} {results[loss]['training_seconds']:.0f} s" for loss in losses)
    return "\n".join([*lines, f"training: {seconds}"])


def _draw(folder: Path, results: dict[str, Any], seeds: int) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    losses = list(results)
    first = results[losses[0]]["policies"]
    series = {
        "mean accuracy": ("#c5c9d3", [p["mean_accuracy"] for p in first.values()]),
        "majority vote of 16": ("#8a93a6", [p["majority_vote"] for p in first.values()]),
    }
    colors = ("#1f6fb4", "#e07b39", "#3c9d5d", "#9256a8", "#b8444f", "#77664f", "#c2a01c", "#4aa5b5")
    for loss, color in zip(losses, colors, strict=False):
        own = [p["best_of_16"] for p in results[loss]["policies"].values()]
        series[f"best of 16 by Q-value ({loss})"] = (color, own)
    figure, axes = plt.subplots(figsize=(10, 4.4), constrained_layout=True)
    width = 0.8 / len(series)
    for i, (name, (color, values)) in enumerate(series.items()):
        axes.bar([x + i * width for x in range(len(values))], values, width, label=name, color=color)
    centre = 0.4 - width / 2
    for x, own in enumerate(first.values()):
        axes.hlines(own["pass_at_16"], x + centre - 0.42, x + centre + 0.42, color="black", linewidth=1, linestyle=":")
    axes.plot([], [], color="black", linewidth=1, linestyle=":", label="any of 16 right")
    axes.set_xlim(-0.4, len(first) - 0.2)
    axes.set_xticks([x + centre for x in range(len(first))], list(first))
    axes.set(ylim=(0, 1.02), ylabel="held-out problems solved", xlabel="policy that wrote the solutions")
    axes.set_title(f"Arithmetic world, mean over {seeds} training seed{'s' * (seeds > 1)} (mixed: not in training)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(series) + 1, frameon=False, fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    path = folder / "best_of_16.png"
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
