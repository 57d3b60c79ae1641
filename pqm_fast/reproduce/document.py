"""Writes reproduce.md: what was run, the tables, published figures beside them, and the cost."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.reproduce.published import PUBLISHED
from pqm_fast.study import markdown

# options that the published protocol says nothing of
OURS = {
    "out",
    "estimate_only",
    "baseline",
    "device",
    "attention",
    "score_tokens",
    "save_every",
    "cache_dir",
    "progress",
}
ALWAYS = (
    "With any options, the schedule of the learning rate, the batches, the dropout and the rules for right answers "
    "differ from the published run: see `What differs from the published run` in docs/how-to/reproduce-pqm.md."
)
GSM_PLUS = (
    "GSM-Plus has 8 variations of each of 300 questions. The intervals take its questions as independent, so they are "
    'too narrow. For 300 of its 2,400 questions the right answer is "None": the published rules never find it, so a '
    "published figure is at most 0.875; ours can find it."
)
KINDS = {"first_n": "the first N", "expected": "any N, expected"}


def document(results: dict[str, Any], costs: dict[str, Any] | None) -> str:
    """The text of reproduce.md; every figure is from results.json, from the estimate or a published one."""
    parts = [_head(results)]
    parts += [
        _policy(results, f"{pool}, {policy}", entry)
        for pool, policies in results["pools"].items()
        for policy, entry in policies.items()
    ]
    parts.append(_published())
    if costs is not None:
        parts.append(f"## Cost\n\n{cost_table(costs)}")
    return "\n\n".join(parts) + "\n"


def _head(results: dict[str, Any]) -> str:
    config = results["config"]
    lines = [
        f"# The protocol {config['protocol']}",
        "",
        f"{config['model']}, trained on {', '.join(config['data'])} with each loss; {results['device']}.",
        "Each figure is the share of questions whose chosen solution is right, with its 95% interval over questions. "
        "The first N solutions of the file are one sample of N, as published; the expectation is over all samples of "
        "N, and so less noisy. One training of each loss: the intervals know nothing of the spread between seeds.",
    ]
    lines += ["", ALWAYS]
    if changed := list(_changed(config)):
        lines += ["", f"Not as published: {', '.join(changed)}."]
    if any("gsm-plus" in source.lower() for source in config["answers"]):
        lines += ["", GSM_PLUS]
    for message in results["left_out"]:
        lines += ["", message]
    return "\n".join([*lines, "", _left_out(results)])


def _left_out(results: dict[str, Any]) -> str:
    """What the models were trained on, what was left out, and which solutions could not be scored to their end."""
    rows, notes = [], dict.fromkeys(note for own in results["trained_on"].values() for note in own["notes"])
    for name, own in results["trained_on"].items():
        rows.append([name, *(_count(own[key]) for key in ("trajectories", "questions", "cut"))])
    table = markdown.table(["training", "trajectories", "questions", "of the trajectories, cut"], rows)
    unfit = [
        f"{pool}: {own['cut']:,} of {own['solutions']:,} solutions do not fit the context and lose steps, "
        f"{own['unscored']:,} of them all steps."
        for pool, own in results["unfit"].items()
    ]
    return "\n\n".join([table, *notes, *unfit])


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _changed(config: dict[str, Any]) -> Iterator[str]:
    """The options of the protocol that are not at their published values."""
    for name, published in json.loads(json.dumps(asdict(ReproduceConfig(config["protocol"])))).items():
        if name not in OURS and config[name] != published:
            value = config[name]
            yield f"{name} is {', '.join(map(str, value)) if isinstance(value, list) else value}"


def _policy(results: dict[str, Any], title: str, entry: dict[str, Any]) -> str:
    ns = [str(n) for n in results["config"]["n"]]
    rows = []
    for figures in entry["losses"].values():
        rows += _rows(f"{figures['title']}, {figures['aggregate']}", figures["best_of_n"], ns)
    rows += _rows("majority vote", entry["vote"], ns)
    rows += _rows("any is right (pass@N)", entry["any"], ns)
    parts = [
        f"## {title}",
        f"{entry['questions']:,} questions with {entry['candidates']:,} solutions; one solution at random: "
        f"{markdown.interval(entry['mean_accuracy'])}.",
        markdown.table(["chosen by", "of", *(f"N = {n}" for n in ns)], rows),
    ]
    if differing := [
        [figures["title"], *(markdown.difference(figures["against"]["expected"][n]) for n in ns)]
        for figures in entry["losses"].values()
        if figures["against"] is not None
    ]:
        parts.append(markdown.table([f"minus {results['baseline']}", *(f"N = {n}" for n in ns)], differing))
    return "\n\n".join(parts)


def _rows(name: str, figures: dict[str, Any], ns: list[str]) -> list[list[str]]:
    return [
        [name if kind == "first_n" else "", text, *(markdown.interval(figures[kind][n]) for n in ns)]
        for kind, text in KINDS.items()
    ]


def _published() -> str:
    rows = [[own.conditions, own.loss, f"{own.percent / 100:.3f}", own.source] for own in PUBLISHED]
    text = "As published, under other conditions: other trainings, other rules for right answers, and other models."
    return f"## Published figures\n\n{text}\n\n{markdown.table(['conditions', 'loss', 'share', 'source'], rows)}"


def cost_table(costs: dict[str, Any]) -> str:
    """The estimate as Markdown."""
    losses = costs["losses"]
    total: dict[str, Any] = {
        part: {key: sum(own[part][key] for own in losses) for key in ("tokens", "operations", "seconds")}
        for part in ("training", "scoring")
    }
    total |= {"name": "all", "steps": sum(own["steps"] for own in losses)}
    rows = [
        [own["name"], f"{own['steps']:,}", *_cost(own["training"]), *_cost(own["scoring"])] for own in [*losses, total]
    ]
    training, forward = (costs["measured"][part] for part in ("training", "forward"))
    solutions = sum(own["solutions"] for own in costs["pools"].values())
    head = ["loss", "steps", "tokens to train on", "operations", "time", "tokens to score", "operations", "time"]
    return "\n\n".join(
        [
            f"Estimate for {costs['device']}, {costs['processes']} "
            f"{'process' if costs['processes'] == 1 else 'processes'}, {costs['dtype']}, {costs['parameters']:,} "
            f"parameters without the embedding, {solutions:,} solutions to score.",
            markdown.table(head, rows),
            "Tokens are counted: those that are computed, after prefixes are shared. Operations follow from them. "
            f"Times are extrapolated: {training['tokens']:,} tokens forward and backward took "
            f"{training['seconds']:.3g} s, {forward['tokens']:,} forward {forward['seconds']:.3g} s "
            f"({costs['measured_with']}). They leave out updates, checkpoints, loading and reading. {_scoring(costs)}",
        ]
    )


def _scoring(costs: dict[str, Any]) -> str:
    text = "The time to score is extrapolated from the forward pass of the training"
    if costs["processes"] == 1:
        return f"{text}."
    return (
        f"{text}, whose weights are divided among the processes. Scoring does not divide them, so the time is an upper "
        "bound."
    )


def _cost(part: dict[str, float]) -> list[str]:
    return [f"{part['tokens']:,.0f}", f"{part['operations']:.2e}", duration(part["seconds"])]


def duration(seconds: float) -> str:
    """In the unit that a reader would choose."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"
