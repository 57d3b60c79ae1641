"""`train` with evaluation and checkpoint, then `Scorer` on the checkpoint, as a user runs them: plain and in trees.

The model has random weights, and the labels can be learned: a wrong step begins with a special word. Every optimizer
step is a pass over all data, so that losses can be compared.
"""

import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pqm_benchmarks.gpu.job import Job
from pqm_benchmarks.shared.shapes import ALL_SHAPES
from pqm_benchmarks.shared.workload import SOLUTIONS, make_workload
from pqm_fast import Scorer
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics

WORDS = 8000
WRONG_STEP, CORRECT_STEP = 0, 1  # the words with which a wrong step and a correct step begin
SCORED = 44  # solutions, of two questions
# relative difference of scores and losses in trees and alone, because attention rounds in another order
TOLERANCE = {"cuda": 0.05, "cpu": 1e-4}


def whole_run(job: Job) -> None:
    """Stores the figures of both runs.

    Raises:
        PQMError: the loss does not fall, or trees have another loss or other scores than solutions alone.
    """
    steps, rate = (40, 1e-4) if job.on_gpu else (8, 1e-2)
    records = _records(*((5, SOLUTIONS) if job.on_gpu else (2, 8)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_model(folder / "model", "Qwen2.5-0.5B" if job.on_gpu else "tiny")
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        runs: dict[str, dict[str, Any]] = {}
        for name, prefix_tree in (("trees", True), ("plain", False)):
            config = TrainConfig(
                model=str(folder / "model"), data=(str(data),), out=str(folder / name), cache_dir=str(folder / "cache"),
                prefix_tree=prefix_tree, accumulation=2, eval_fraction=0.2, eval_every=20, save_every=0, log_every=1,
                max_steps=steps, learning_rate=rate, device=job.device, progress=False,
            )  # fmt: skip
            started = time.perf_counter()
            train(config)
            runs[name] = {"seconds": time.perf_counter() - started} | _figures(folder / name)
            job.store(headline=_headline(runs), runs=runs)
        difference = _score_difference(folder / "trees", records[-SCORED:], job.device)
    losses = [runs[name]["first_loss"] for name in ("trees", "plain")]
    differences = {"scores": difference, "the first loss": abs(losses[0] - losses[1]) / losses[1]}
    job.store(headline=f"{_headline(runs)}; scores in trees differ by {difference:.2g}", differences=differences)
    allowed = TOLERANCE[job.device]
    for quantity, relative in differences.items():
        if not relative <= allowed:
            raise PQMError(f"{quantity} in trees differs by {relative:.2g} from that alone, allowed {allowed:g}")
    for name, figures in runs.items():
        if not figures["last_loss"] < figures["first_loss"]:
            raise PQMError(f"{name}: the loss went from {figures['first_loss']:.3f} to {figures['last_loss']:.3f}")


def _figures(run: Path) -> dict[str, Any]:
    rows = read_metrics(run / "metrics.jsonl")
    held_out = [row for row in rows if row["kind"] == "eval"]
    rows = [row for row in rows if row["kind"] == "train"]
    later = rows[len(rows) // 2 :]  # compiled by then
    return {
        "first_loss": rows[0]["loss"],
        "last_loss": statistics.mean(row["loss"] for row in later),
        "auroc": held_out[-1]["auroc"],
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in later),
        "trajectories_per_second": statistics.median(row["trajectories_per_second"] for row in later),
        "peak_memory_gb": rows[-1].get("peak_memory_gb"),
    }


def _headline(runs: dict[str, dict[str, Any]]) -> str:
    return ", ".join(
        f"{name} {figures['trajectories_per_second']:,.0f} trajectories/s, loss {figures['first_loss']:.2f} to "
        f"{figures['last_loss']:.2f}"
        for name, figures in runs.items()
    )


def _score_difference(checkpoint: Path, records: list[dict[str, Any]], device: str) -> float:
    """|in trees - alone| / |alone|, Euclidean, over all steps."""
    solutions = [(record["prompt"], record["completions"]) for record in records]
    scores = []
    for prefix_tree in (True, False):
        scorer = Scorer.from_pretrained(checkpoint, device=device, prefix_tree=prefix_tree)
        q_values = itertools.chain(*scorer.score(solutions))
        scores.append(np.array(list(q_values), dtype=np.float64))
    trees, alone = scores
    return float(np.linalg.norm(trees - alone) / np.linalg.norm(alone))


def _records(questions: int, solutions: int) -> list[dict[str, Any]]:
    """Step-labelled solutions with the lengths and shared steps of the workload, a word for each token."""
    records = []
    for trajectories in make_workload(questions, 0, solutions=solutions, vocabulary=WORDS):
        shortest = min(len(trajectory.input_ids) for trajectory in trajectories)
        tokens = np.stack([trajectory.input_ids[:shortest] for trajectory in trajectories])
        question = int(np.argmin((tokens == tokens[0]).all(0)))  # the number of tokens that all have in common
        records += [_record(trajectory, question) for trajectory in trajectories]
    return records


def _record(trajectory: Trajectory, question: int) -> dict[str, Any]:
    """`question` is the number of tokens of the question."""
    ends = trajectory.step_tokens.tolist()
    steps = []
    for start, end, label in zip([question, *(end + 1 for end in ends[:-1])], ends, trajectory.labels, strict=True):
        words = trajectory.input_ids[start:end].tolist()
        steps.append(" ".join(map(str, [CORRECT_STEP if label else WRONG_STEP, *words])))
    prompt = " ".join(map(str, trajectory.input_ids[:question].tolist()))
    return {"prompt": prompt, "completions": steps, "labels": [bool(label) for label in trajectory.labels]}


def _write_model(folder: Path, shape: str) -> None:
    """Writes a config and a tokenizer: a Llama, for which any tokenizer will do, with the sizes of the shape."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    core = Tokenizer(WordLevel({str(i): i for i in range(WORDS)}, unk_token="0"))
    core.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="0").save_pretrained(folder)
    sizes = ALL_SHAPES[shape]
    LlamaConfig(
        vocab_size=max(sizes.vocab_size, WORDS + 64),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=sizes.tie_word_embeddings,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
