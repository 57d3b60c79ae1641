"""The model card of a run: what its options and its metrics.jsonl say about the weights after a step."""

from pathlib import Path

from pqm_fast.publish.card_text import Training
from pqm_fast.publish.model_card import write_card
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.metrics_file import METRICS_FILE, read_metrics, read_starts


def write_run_card(folder: Path, run: Path, config: TrainConfig, step: int, dtype: str) -> bool:
    """Writes the card of the checkpoint `folder`, which holds the weights of the run in `run` after `step`, computed in
    `dtype`. Returns False if the folder has a card that someone has edited, which stays."""
    starts, rows = read_starts(run / METRICS_FILE), read_metrics(run / METRICS_FILE)
    start = starts[-1] if starts else {}
    evaluations = [row for row in rows if row["kind"] == "eval" and row["step"] == step]
    return write_card(
        folder,
        Training(
            base_model=config.model,
            data=config.data,
            trajectories=start.get("trajectories"),
            questions=start.get("questions"),
            steps=start.get("steps"),
            optimizer_steps=step,
            learning_rate=config.learning_rate,
            dtype=dtype,
            lora_rank=config.lora_rank,
            held_out=evaluations[-1] if evaluations else {},
            init_head=config.init_head,
        ),
    )
