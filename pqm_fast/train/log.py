"""What a run says while it goes: a progress bar, JSON lines and a picture of the curve."""

import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pqm_fast.common.files import atomic_file, is_at, write_all
from pqm_fast.train.folder import NotWritten, RunFolder

SHOWN = {"loss": ".3f", "step_accuracy": ".3f", "grad_norm": ".2f", "tokens_per_second": ",.0f"}
NAMES = {"step_accuracy": "acc", "grad_norm": "gnorm", "tokens_per_second": "tok/s"}
FILE = "metrics.jsonl"


class RunLog:
    """metrics.jsonl in the run folder, one object a line, and the same figures on the bar."""

    def __init__(self, folder: RunFolder, total: int, start: int = 0, progress: bool = True):
        self.folder, self.progress = folder, progress
        with folder.writing(FILE) as path:
            dropped = self._keep_up_to(path, start, total)
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close())
        self.bar = _Steps(total=total, initial=start, unit="step", disable=not progress, dynamic_ncols=True)
        if dropped:
            self.say(f"{path}: {dropped} damaged lines were taken out")

    def _keep_up_to(self, path: Path, step: int, total: int) -> int:
        """Lines of steps that a continued run is going to do again would stand there twice. Returns how many lines
        were damaged, one that a crash cut off (it has no line feed) not counted."""
        again = {"train": step, "eval": min(step, total - 1)}  # the last evaluation is after the last checkpoint
        lines = _lines(path)
        kept = [
            (line, row)
            for line, row in lines
            if isinstance(row, dict) and (not _is_ours(row) or row["step"] <= again.get(row["kind"], step))
        ]
        self.evaluated = {row["step"] for _, row in kept if _is_ours(row) and row["kind"] == "eval"}
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"".join(line.removesuffix(b"\n") + b"\n" for line, _ in kept))
        return sum(row is None and line.endswith(b"\n") for line, row in lines)

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """`kind` is train or eval. Raises NotWritten; the file then ends with the line before."""
        line = json.dumps({"kind": kind, "step": step, **figures}).encode() + b"\n"
        with self.folder.writing(FILE) as path:
            end = os.fstat(self.file.fileno()).st_size
            try:
                write_all(self.file, line)
            except OSError:
                os.ftruncate(self.file.fileno(), end)
                raise
            if not is_at(self.file, path):
                raise NotWritten(f"{path}: was removed or replaced while the run was writing into it")
        if kind == "train":
            self.bar.seconds_left(figures["eta_seconds"])
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

    @contextmanager
    def evaluating(self, trajectories: int) -> Iterator[tqdm]:
        """A bar of its own, which goes when the evaluation is done."""
        with tqdm(
            total=trajectories,
            desc="evaluation",
            unit="traj",
            disable=not self.progress,
            dynamic_ncols=True,
            leave=False,
        ) as bar:
            yield bar

    def close(self) -> None:
        self.bar.close()
        self.file.close()


class _Steps(tqdm):
    """A bar whose time left is the run's: that of the steps to come and of the evaluations."""

    end: float | None = None

    def seconds_left(self, seconds: float) -> None:
        self.end = time.time() + seconds

    @property
    def format_dict(self) -> dict[str, Any]:
        left = "?" if self.end is None else self.format_interval(max(0.0, self.end - time.time()))
        bar = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<" + left + ", {rate_fmt}{postfix}]"
        return {**super().format_dict, "bar_format": bar}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, each with its `kind` and `step`; lines that are damaged, cut off or no such rows are
    left out."""
    return [row for _, row in _lines(path) if _is_ours(row)]


def _lines(path: Path) -> list[tuple[bytes, Any]]:
    """Every line that holds something, with its line feed, and its value: None for what is no JSON."""
    found: list[tuple[bytes, Any]] = []
    for line in io.BytesIO(path.read_bytes()) if path.exists() else ():
        if line.strip():
            try:
                found.append((line, json.loads(line.decode("utf-8"))))
            except (ValueError, RecursionError):
                found.append((line, None))
    return found


def _is_ours(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("kind"), str) and type(row.get("step")) is int


def draw_curve(folder: Path) -> Path:
    """training.png from metrics.jsonl: loss with its flat floor, accuracies, gradient norm and learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(folder / FILE)
    train = [r for r in rows if r["kind"] == "train"]
    held_out = [r for r in rows if r["kind"] == "eval"]
    figure, (loss, accuracy, gradient) = plt.subplots(1, 3, figsize=(15, 4.2), constrained_layout=True)

    def line(axes, data, key, label, **style):
        points = [(r["step"], r[key]) for r in data if isinstance(r.get(key), int | float)]
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
        if axes.get_lines():
            axes.legend(fontsize=8)
    gradient.grid(alpha=0.3)
    handles = [h for axes in (gradient, rate) for h in axes.get_lines()]
    if handles:
        gradient.legend(handles, [str(h.get_label()) for h in handles], fontsize=8, loc="lower left")
    path = folder / "training.png"
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
