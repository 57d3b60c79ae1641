"""The lines that `pqm-fast status` prints about a run."""

from collections.abc import Iterator
from datetime import datetime

from pqm_fast.status.numbers import Trend, duration
from pqm_fast.status.summary import Summary

START_NAMES = {
    "world": "rank(s)",
    "parameters": "parameters",
    "trajectories": "trajectories to train on",
    "held_out": "held out",
}
NAMES = {"step_accuracy": "step accuracy", "auroc": "AUROC"}


def lines(run: Summary, now: float) -> Iterator[str]:
    """`now`: UNIX seconds."""
    yield f"{run.run}: {run.state} ({run.reason})"
    for name, text in (
        ("started", _started(run)),
        ("progress", _progress(run)),
        ("training", ", ".join(_figure(name, figure) for name, figure in run.training.items())),
        ("held out", _held_out(run)),
        ("speed", _speed(run)),
        ("health", _health(run)),
        ("checkpoint", _checkpoint(run, now)),
        ("resume", run.resume or ""),
    ):
        if text:
            yield f"  {name:<11} {text}"


def _started(run: Summary) -> str:
    """From the row of the start, whose values may be damaged."""
    start = run.start
    texts = [f"on {start['host']} ({start.get('device')})"] if "host" in start else []
    for name, unit in START_NAMES.items():
        if isinstance(start.get(name), int):
            texts.append(f"{start[name]:,} {unit}")
    return ", ".join(texts)


def _progress(run: Summary) -> str:
    text = f"step {run.step:,}"
    if run.total_steps is not None:
        text += f" of {run.total_steps:,} ({run.step / run.total_steps:.1%})"
    if run.seconds_left is not None:
        text += f", {duration(run.seconds_left)} left"
    if run.expected_end is not None:
        text += f", until about {datetime.fromtimestamp(run.expected_end):%F %H:%M}"
    elif run.seconds_left is not None:
        text += " once it is resumed"
    return text


def _figure(name: str, figure: Trend) -> str:
    text = f"{NAMES.get(name, name)} {figure.last:.3f}"
    if figure.change is None:
        return text
    direction = f"{figure.direction}, " if figure.direction else ""
    return f"{text} ({direction}{figure.change:+.3f} since step {figure.since_step:,})"


def _held_out(run: Summary) -> str:
    if run.held_out_step is None:
        return ""
    text = f"step {run.held_out_step:,}: " + ", ".join(_figure(*item) for item in run.held_out.items())
    for name, best in run.best.items():
        text += f"; best {NAMES.get(name, name)} {best.value:.3f} at step {best.step:,}"
    return text


def _speed(run: Summary) -> str:
    if (speed := run.speed) is None:
        return ""
    return (
        f"{speed.tokens:,.0f} tokens/s (median {speed.tokens_median:,.0f}), {speed.trajectories:,.1f} trajectories/s "
        f"(median {speed.trajectories_median:,.1f})"
    )


def _health(run: Summary) -> str:
    health = run.health
    parts = [f"warning: {warning}" for warning in health.warnings]
    count = sum(health.skipped.values())
    if count:
        reasons = ", ".join(f"{number} {reason}" for reason, number in health.skipped.items())
        parts.append(f"{count:,} steps left out ({reasons}), the last at step {health.last_skipped:,}")
    if health.grad_norm is not None:
        parts.append(f"gradient norm {health.grad_norm:.3g} (median {health.grad_norm_median:.3g})")
    if health.peak_memory_gb is not None:
        parts.append(f"peak memory {health.peak_memory_gb:.1f} GB")
    return "; ".join(parts)


def _checkpoint(run: Summary, now: float) -> str:
    if run.checkpoint is None:
        return "none yet" if run.state == "running" else "none"
    age = duration(max(0.0, now - run.checkpoint.time))
    best = f"; best: {run.best_checkpoint}" if run.best_checkpoint else ""
    return f"{run.checkpoint.name}, {age} old (all files are there; their contents were not compared){best}"
