"""What a run says while it goes: a progress bar, JSON lines and a picture of the curve."""

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pqm_fast.files import atomic_file

SHOWN = {"loss": ".3f", "step_accuracy": ".3f", "grad_norm": ".2f", "tokens_per_second": ",.0f"}
NAMES = {"step_accuracy": "acc", "grad_norm": "gnorm", "tokens_per_second": "tok/s"}


class RunLog:
    """metrics.jsonl in the run folder, one object a line, and the same figures on the bar."""

    def __init__(self, folder: Path, total: int, start: int = 0, progress: bool = True):
        self.path = folder / "metrics.jsonl"
        self._keep_up_to(start, total)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close())
        self.bar = tqdm(total=total, initial=start, unit="step", disable=not progress, dynamic_ncols=True)

    def _keep_up_to(self, step: int, total: int) -> None:
        """Lines of steps that a continued run is going to do again would stand there twice."""
        again = {"train": step, "eval": min(step, total - 1)}  # the last evaluation is after the last checkpoint
        lines = [row for row in read_metrics(self.path) if row["step"] <= again[row["kind"]]]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """`kind` is train or eval."""
        self.file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")
        self.file.flush()
        if kind == "train":
            self.bar.set_postfix_str(
                ", ".join(
                    f"{NAMES.get(k, k)} {figures[k]:{spec}}" for k, spec in SHOWN.items() if figures.get(k) is not None
                )
            )
        else:
            self.say(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items() if isinstance(v, float)))

    def say(self, text: str) -> None:
        self.bar.write(text)

    def advance(self) -> None:
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        self.file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def draw_curve(folder: Path) -> Path:
    """training.png from metrics.jsonl: loss with its flat floor, accuracies, gradient norm and learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(folder / "metrics.jsonl")
    train = [r for r in rows if r["kind"] == "train"]
    held_out = [r for r in rows if r["kind"] == "eval"]
    figure, (loss, accuracy, gradient) = plt.subplots(1, 3, figsize=(15, 4.2), constrained_layout=True)

    def line(axes, data, key, label, **style):
        points = [(r["step"], r[key]) for r in data if r.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)

    line(loss, train, "loss", "training", color="tab:blue", alpha=0.7)
    line(loss, held_out, "loss", "held out", color="tab:orange", marker="o", markersize=3)
    line(loss, train, "flat_floor", "floor: correct steps all scored alike", color="gray", linestyle=":")
    loss.set(title="loss", xlabel="optimizer step")
    line(accuracy, train, "step_accuracy", "step accuracy, training", color="tab:blue", alpha=0.4)
    line(
        accuracy,
        held_out,
        "step_accuracy",
        "step accuracy, held out",
        color="tab:orange",
        marker="o",
        markersize=3,
    )
    line(accuracy, held_out, "auroc", "step AUROC, held out", color="tab:green", marker="s", markersize=3)
    line(
        accuracy,
        held_out,
        "pair_accuracy",
        "pairs in order, held out",
        color="tab:red",
        marker="^",
        markersize=3,
    )
    accuracy.set(title="accuracy", xlabel="optimizer step", ylim=(None, 1.02))
    line(gradient, train, "grad_norm", "gradient norm", color="tab:purple", alpha=0.7)
    gradient.set(title="gradient norm and learning rate", xlabel="optimizer step", yscale="log")
    rate = gradient.twinx()
    line(rate, train, "learning_rate", "learning rate", color="tab:brown")
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    gradient.grid(alpha=0.3)
    handles = [h for axes in (gradient, rate) for h in axes.get_lines()]
    gradient.legend(handles, [str(h.get_label()) for h in handles], fontsize=8, loc="lower left")
    path = folder / "training.png"
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
