"""A study that takes seconds: a tiny model, records with types of error, records in ProcessBench's form, and a pool."""

import json
from pathlib import Path
from typing import Any

from small_probes import config_in

from pqm_fast.probe_study.options import ProbeStudyConfig


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def study_in(folder: Path, **changes: Any) -> ProbeStudyConfig:
    """A study of `folder / "data.jsonl"` in `folder / "study"`."""
    probe = config_in(folder)
    data = folder / "data.jsonl"
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    for i, row in enumerate(rows):
        row["error_type"] = ["slip", "jump", None][i % 3]
        if i % 3 == 2:
            row["labels"] = [True] * len(row["labels"])
    write_rows(data, rows)
    pool = [
        {"question_id": f"q{i // 4}", "id": f"q{i // 4}/{i % 4}", "prompt": f"w5 w{6 + i // 4}", "policy": f"p{i % 4}",
         "completions": rows[i]["completions"], "correct": bool(i % 3)}
        for i in range(100)
    ]  # fmt: skip
    bench = [
        {"id": f"b{i}", "problem": f"w9 w{4 + i % 30}", "steps": row["completions"], "generator": "x",
         "label": -1 if i % 2 else min(1, len(row["completions"]) - 1), "final_answer_correct": True}
        for i, row in enumerate(rows[:40])
    ]  # fmt: skip
    (folder / "bench.json").write_text(json.dumps(bench))
    options: dict[str, Any] = {
        "model": probe.model,
        "data": (str(data),),
        "out": str(folder / "study"),
        "cache_dir": probe.cache_dir,
        "processbench": (str(folder / "bench.json"),),
        "pools": (write_rows(folder / "pool.jsonl", pool),),
        "losses": ("bce", "rank", "bce+sibling"),
        "labels": ("given", "flip:0.2"),
        "seeds": (0, 1),
        "epochs": 3,
        "learning_rates": (0.01, 0.03),
        "zetas": (2.0, 4.0),
        "compare_weights": (1.0,),
        "layers": (1, 3),
        "batch_steps": 60,
        "max_length": 64,
        "max_tokens": 128,
        "dtype": "float32",
        "device": "cpu",
        "progress": False,
    }
    return ProbeStudyConfig(**(options | changes))
