"""`pqm-fast probe`: states, heads, and the best head as a checkpoint."""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pqm_fast.common.combination import parse_loss
from pqm_fast.common.files import atomic_file, write_json
from pqm_fast.common.journal import Journal
from pqm_fast.common.lock import is_empty, locked
from pqm_fast.common.signals import stop_raises
from pqm_fast.common.yaml_file import write_yaml
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError
from pqm_fast.model.device import dtype_name
from pqm_fast.probe.checkpoint import write_checkpoint
from pqm_fast.probe.files import HEADS_FILE, PICTURE, SUMMARY_FILE, WEIGHTS_FILE
from pqm_fast.probe.frozen import FrozenDecoder, with_dtype
from pqm_fast.probe.heads import Head, HeadSpec, choose, grid
from pqm_fast.probe.options import ProbeConfig
from pqm_fast.probe.picture import draw_layers
from pqm_fast.probe.splits import Sides, needs_outcomes
from pqm_fast.probe.trainer import HeadTrainer
from pqm_fast.publish.card_text import Training
from pqm_fast.publish.model_card import write_card
from pqm_fast.train.metrics_file import METRICS_FILE, START
from pqm_fast.train.run_files import CONFIG_FILE
from pqm_fast.train.split import Split

# options that change no head
WITHOUT_EFFECT = {"out", "cache_dir", "progress", "select"}


def probe(config: ProbeConfig) -> dict[str, Any]:
    """Computes what states are missing, trains every head of the grid, and writes the run folder. Returns the row of
    the chosen head.

    Interrupted at any moment, the same call continues, and ends with the same bytes.

    Raises PQMError for a model, data or options that cannot be used, and for a run folder that is finished.
    """
    if (config.folder / HEADS_FILE).exists():
        raise PQMError(f"{config.out}: already holds a finished probe; choose another --out")
    _check_folder(config.folder)
    with locked(config.folder, "probe", folder=True), stop_raises():
        return _probe(config)


def _check_held_out(config: ProbeConfig, held_out: Split) -> None:
    """Raises PQMError if no head can be chosen, for want of correct or of wrong steps."""
    labels = np.concatenate([held_out.trajectory(int(i)).labels for i in held_out.indices])
    if not ((labels >= 0.5).any() and (labels < 0.5).any()):
        raise PQMError(
            f"{config.out}: the held-out questions have no {'wrong' if (labels >= 0.5).any() else 'correct'} steps, so "
            "no head can be chosen; hold out others with --eval-data or --eval-fraction"
        )


def _check_folder(folder: Path) -> None:
    """Raises PQMError for a folder that holds anything but an interrupted probe."""
    if is_empty(folder) or (folder / f"{HEADS_FILE}.part").exists():
        return
    raise PQMError(f"{folder}: is not empty, and holds no interrupted probe; choose another --out")


def _probe(config: ProbeConfig) -> dict[str, Any]:
    notes: list[str] = []
    config = with_dtype(config, config.folder / HEADS_FILE)
    decoder = FrozenDecoder(config, notes)
    combinations = [parse_loss(loss) for loss in config.losses]
    outcomes = needs_outcomes(config, combinations)
    training = decoder.probed(config.data, outcomes=outcomes)
    held_out = decoder.probed(config.eval_data, outcomes=outcomes) if config.eval_data else training
    specs = grid(config, decoder.layers)
    trainer = HeadTrainer(config, decoder, Sides(training, held_out), notes)
    for combination in dict.fromkeys(combinations):  # so that bad labels are found before the first head
        _check_held_out(config, trainer.split(combination)[1])
    print(_description(config, decoder, trainer, specs))
    for note in dict.fromkeys(notes):
        print(note)
    heads = _train(config, decoder, trainer, specs)
    chosen = choose(heads, config.select)
    if chosen is None:
        raise PQMError(f"{config.out}: no head has a held-out {config.select}: hold out correct and wrong steps")
    _write(config, decoder, trainer, heads, chosen)
    return chosen.row()


def _train(config: ProbeConfig, decoder: FrozenDecoder, trainer: HeadTrainer, specs: list[HeadSpec]) -> list[Head]:
    """All heads in the order of the grid; those that an interrupted run has trained are read back."""
    journal = Journal(config.folder / HEADS_FILE, _inputs(config, decoder, trainer.sides))
    done: dict[str, Head] = {}

    def take(_: int, row: dict[str, Any]) -> None:
        head = Head.from_store(row)
        done[head.spec.name] = head

    journal.replay(take)
    with ExitStack() as stack:
        stack.enter_context(journal.writing())
        bar = tqdm(total=len(specs), unit="head", disable=not config.progress, dynamic_ncols=True)
        stack.callback(bar.close)
        for spec in specs:
            if spec.name not in done:
                head = trainer.train(spec)
                journal.append(head.to_store())
                done[spec.name] = head
                value = head.held_out.get(config.select)
                bar.set_postfix_str(f"{spec.name}: {config.select} {'-' if value is None else f'{value:.3f}'}")
            bar.update()
    return [done[spec.name] for spec in specs]


def _inputs(config: ProbeConfig, decoder: FrozenDecoder, sides: Sides) -> dict[str, Any]:
    """All that the heads depend on."""
    options = {name: value for name, value in config.to_dict().items() if name not in WITHOUT_EFFECT}
    data = [source_key(path) for path in (*config.data, *config.eval_data)]
    states = [sides.training.files.folder.name, sides.held_out.files.folder.name]
    depends_on = {**options, "data": data, "states": states, "layers": decoder.layers}
    return json.loads(json.dumps(depends_on | {"dtype": dtype_name(decoder.dtype)}))


def _description(config: ProbeConfig, decoder: FrozenDecoder, trainer: HeadTrainer, specs: list[HeadSpec]) -> str:
    training, held_out = trainer.split(specs[0].combination)
    layers = ", ".join(map(str, decoder.layers))
    return (
        f"{config.model}: layers {layers} of {decoder.depth}, {decoder.width} wide, {dtype_name(decoder.dtype)} on "
        f"{decoder.device.type}\n{len(training):,} trajectories of {training.num_questions:,} questions to train on, "
        f"{len(held_out):,} of {held_out.num_questions:,} held out; {len(specs):,} heads"
    )


def _write(config: ProbeConfig, decoder: FrozenDecoder, trainer: HeadTrainer, heads: list[Head], chosen: Head) -> None:
    """Everything that a finished run folder holds; heads.jsonl, which says that it is finished, comes last."""
    folder = config.folder
    write_yaml(folder / CONFIG_FILE, config.to_dict())
    write_checkpoint(config, decoder, chosen)
    arrays: dict[str, Any] = {f"{head.spec.name}.weight": head.weight for head in heads}
    arrays |= {f"{head.spec.name}.bias": np.array([head.bias], dtype=np.float32) for head in heads}
    # not safetensors, which would count as weights of the checkpoint
    with atomic_file(folder / WEIGHTS_FILE) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    rows = [head.row() for head in heads]
    training, held_out = trainer.split(chosen.spec.combination)
    summary = {
        "model": config.model,
        "decoder_layers": decoder.depth,
        "layers": list(decoder.layers),
        "chosen": chosen.spec.name,
        "select": config.select,
        "rows": len(trainer.sides.training.rows(decoder.layers[0])),
        "width": decoder.width,
        "dtype": dtype_name(decoder.dtype),
        "device": decoder.device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    write_json(folder / SUMMARY_FILE, summary)
    write_json(folder / "metrics.json", chosen.held_out)
    steps = len(trainer.layouts(chosen.spec.combination, chosen.spec.seed)[0].batches)
    with atomic_file(folder / METRICS_FILE) as temporary:
        lines = _metrics_rows(decoder, training, held_out, chosen, steps)
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_card(folder, _card(config, decoder, training, chosen, chosen.best_epoch * steps))
    draw_layers(rows, folder / PICTURE)
    with atomic_file(folder / HEADS_FILE) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / f"{HEADS_FILE}.part").unlink(missing_ok=True)


def _metrics_rows(
    decoder: FrozenDecoder, training: Split, held_out: Split, chosen: Head, steps: int
) -> Iterator[dict[str, Any]]:
    """The training of the chosen head up to its best epoch, as `pqm-fast train` writes it into metrics.jsonl; an epoch
    has `steps`."""
    yield {
        "kind": START,
        "step": 0,
        "total_steps": chosen.best_epoch * steps,
        "time": time.time(),
        "host": platform.node(),
        "device": decoder.device.type,
        "world": 1,
        "parameters": decoder.width + 1,
        "trajectories": len(training),
        "questions": training.num_questions,
        "steps": training.counts(training.indices)[0],
        "held_out": len(held_out),
    }
    for epoch, (loss, held_out_loss) in enumerate(chosen.curve[: chosen.best_epoch], 1):
        yield {"kind": "train", "step": epoch * steps, "loss": loss, "learning_rate": chosen.spec.learning_rate}
        figures = chosen.held_out if epoch == chosen.best_epoch else {"loss": held_out_loss}
        yield {"kind": "eval", "step": epoch * steps, **figures}


def _card(config: ProbeConfig, decoder: FrozenDecoder, training: Split, chosen: Head, steps: int) -> Training:
    return Training(
        base_model=config.model,
        data=config.data,
        trajectories=len(training),
        questions=training.num_questions,
        steps=training.counts(training.indices)[0],
        optimizer_steps=steps,
        learning_rate=chosen.spec.learning_rate,
        dtype=dtype_name(decoder.dtype),
        lora_rank=0,
        held_out=chosen.held_out,
    )
