"""Runs as the commands leave them in files: metrics, options, results of `evaluate`, scored solutions."""

import json
from pathlib import Path
from typing import Any

import yaml

from pqm_fast.common.files import write_json
from pqm_fast.data.records import Record
from pqm_fast.evaluate import evaluate_pools, evaluate_steps
from pqm_fast.train.config import TrainConfig

HOSTILE = "</script><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\"><!--<script>"


def write_run(folder: Path, seed: int = 0, auroc: float = 0.8, **options: Any) -> Path:
    """A training run of 40 steps with two evaluations; the last AUROC is the one given."""
    folder.mkdir(parents=True)
    config = TrainConfig(model="m", data=("d",), out=str(folder), seed=seed, **options)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for step in range(10, 41, 10):
        figures = {"loss": 3 / step, "step_accuracy": 0.5 + step / 100, "pair_accuracy": None, "flat_floor": 0.4}
        more = {"grad_norm": 1 / step, "learning_rate": 1e-5, "tokens_per_second": 1000.0 * step}
        rows.append({"kind": "train", "step": step, **figures, **more})
        if step % 20 == 0:
            held_out = {"loss": 0.2, "step_accuracy": 0.75, "auroc": auroc - (40 - step) / 100, "pair_accuracy": 0.7}
            rows.append({"kind": "eval", "step": step, **held_out, "first_error_accuracy": 0.6, "steps": 90})
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def solution(
    name: str, scores: list[float | None], labels: list[float | None] | None = None, **more: Any
) -> dict[str, Any]:
    """A line that `score` writes; the steps are named after the solution."""
    row: dict[str, Any] = {"id": name, "prompt": "What is 1 + 1?"}
    row |= {"completions": [f"{name} step {t + 1}" for t in range(len(scores))], "scores": scores}
    return row | ({} if labels is None else {"labels": labels}) | more


def pool(good: float, policies: tuple[str, ...] = ("weak", "strong")) -> list[dict[str, Any]]:
    """Four questions with four labelled candidates of each policy; the better the model, the higher `good`."""
    rows = []
    for question in range(4):
        for policy in policies:
            for k in range(4):
                right = (k + question) % 2 == 0
                scores = [1.5, good + k / 10 if right else 0.5 - k / 10]
                more = {"question_id": f"q{question}", "policy": policy, "correct": right, "answer": "2"}
                row = solution(f"q{question}-{policy}-{k}", scores, [1.0, float(right)], **more)
                rows.append(row | {"prompt": f"Question {question}?"})
    return rows


def results(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The results that `evaluate` stores for such lines."""
    pairs = []
    for row in rows:
        extra = {k: v for k, v in row.items() if k not in ("id", "prompt", "completions", "labels")}
        record = Record(row["id"], row["prompt"], row["completions"], row.get("labels"), extra)
        pairs.append((record, row["scores"]))
    found: dict[str, Any] = {"records": len(rows), "left_out": []}
    for part in (evaluate_steps(pairs), evaluate_pools(pairs)):
        found["left_out"] += part.pop("left_out")
        found |= part
    return found


def write_results(path: Path, rows: list[dict[str, Any]], model: str | None = None) -> Path:
    write_json(path, {"model": model, **results(rows)})
    return path
