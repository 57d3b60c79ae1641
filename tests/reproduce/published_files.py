"""Stand-ins for the files of PQM's published protocol, with their fields, at a size that takes seconds."""

import json
import random
from pathlib import Path
from typing import Any

import tiny

POLICIES = ("strong", "weak")
QUESTIONS, CANDIDATES = 4, 6


def words(rng: random.Random, count: int) -> str:
    return " ".join(f"w{rng.randrange(3, 90)}" for _ in range(count))


def math_shepherd(path: Path, count: int = 30) -> str:
    """`input` and `label` are one text; each step ends with the marker, or with + or - in its place."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            steps = [f"Step {k + 1}: {words(rng, rng.randrange(1, 5))} " for k in range(rng.randrange(1, 5))]
            signs = [rng.choice("+-") for _ in steps]
            question = f"w3 w{4 + i % 10} "
            row = {
                "input": question + "\n".join(f"{step}ки" for step in steps),
                "label": question + "\n".join(step + sign for step, sign in zip(steps, signs, strict=True)),
                "task": "GSM8K",
            }
            file.write(json.dumps(row) + "\n")
    return str(path)


def pool(name: str, policy: str, seed: int) -> list[dict[str, Any]]:
    """Every text begins behind "Step 1:", which was part of the prompt."""
    rng = random.Random(seed)
    rows = []
    for q in range(QUESTIONS):
        start = words(rng, 2)
        responses = []
        for _ in range(CANDIDATES):
            first = start if rng.random() < 0.5 else words(rng, 2)
            text = f" {first}\nand more\nStep 2: {words(rng, 3)}. The answer is: {rng.randrange(3)}"
            responses.append({"text": text, "model_name": policy})
        rows.append({"question": f"{name} w{20 + q}", "responses": responses})
    return rows


def write_world(folder: Path) -> dict[str, Any]:
    """A model, Math-Shepherd, MATH500 with two policies, GSM-Plus with one, and their answers, as options."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.model_folder(folder / "model", num_hidden_layers=2)
    (folder / "pools").mkdir()
    for seed, (name, policy) in enumerate((("math", "strong"), ("math", "weak"), ("gsm", "weak"))):
        rows = pool(name, policy, seed)
        (folder / "pools" / f"{name}-{policy}-6.json").write_text(json.dumps(rows), encoding="utf-8")
    math = [
        {"problem": f"math w{20 + q}", "solution": f"\\boxed{{{q % 3}}}", "answer": str(q % 3), "subject": "Algebra"}
        for q in range(QUESTIONS)
    ]
    gsm = [{"question": f"gsm  w{20 + q}", "solution": "...", "answer": str(q % 3)} for q in range(QUESTIONS)]
    for name, rows in (("math", math), ("gsm", gsm)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model": str(folder / "model"),
        "data": (math_shepherd(folder / "shepherd.jsonl"),),
        "pools": (str(folder / "pools"),),
        "answers": (str(folder / "math.jsonl"), str(folder / "gsm.jsonl")),
        "cache_dir": str(folder / "tokens"),
        "losses": ("rank", "bce", "orm"),
        "n": (1, 2, 4),
        "max_steps": 3,
        "learning_rate": 1e-2,
        "micro_batches": 2,
        "micro_batch_tokens": 128,
        "device": "cpu",
        "progress": False,
    }


def command_line(options: dict[str, Any]) -> list[str]:
    """The options as they are typed."""
    typed = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            typed.append(option if value else f"--no-{option[2:]}")
        else:
            typed += [option, *map(str, value if isinstance(value, tuple) else (value,))]
    return typed
