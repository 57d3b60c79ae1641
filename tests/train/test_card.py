"""The model card that a training leaves in its folder, and an export beside the weights."""

import re
from dataclasses import replace

import pytest

from pqm_fast.cli import main
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import METRICS_FILE, read_metrics


def shown(folder):
    """(the text of a card, its figures)"""
    text = (folder / "README.md").read_text()
    return text, {name: float(value) for name, value in re.findall(r"^\| ([^|]+) \| ([\d.]+) \|", text, re.M)}


def test_figures_and_counts_are_those_of_the_run(configure, tmp_path, capsys):
    config = configure(max_steps=4, eval_fraction=0.2, eval_every=2, save_every=2)
    metrics = train(config)
    text, figures = shown(config.folder)
    assert figures["AUROC"] == pytest.approx(metrics["auroc"], abs=5e-4)
    assert figures["loss"] == pytest.approx(metrics["loss"], abs=5e-4)
    assert "- 4 optimizer steps, peak learning rate 0.01\n" in text
    # 120 records of 30 questions; of 6 questions, the 24 records are held out
    assert re.search(r"- data: `data.jsonl` \(96 solutions, 24 questions, \d+ steps\)", text)
    assert "computed in float32, stored in bfloat16" in text
    assert str(tmp_path) not in text

    assert main(["export", str(config.folder), "--step", "2", "--out", str(tmp_path / "hf")]) == 0
    printed = capsys.readouterr().out
    assert f"serve: pqm-fast serve --model {tmp_path / 'hf'}\n" in printed
    text, figures = shown(tmp_path / "hf")
    row = next(row for row in read_metrics(config.folder / METRICS_FILE) if (row["kind"], row["step"]) == ("eval", 2))
    assert figures["loss"] == pytest.approx(row["loss"], abs=5e-4)
    assert "- 2 optimizer steps" in text


def test_a_run_that_is_extended_keeps_an_edited_card(configure, capsys):
    config = configure(max_steps=2, save_every=1, eval_fraction=0)
    train(config)
    card = config.folder / "README.md"
    train(replace(config, max_steps=3, resume=True))
    assert "- 3 optimizer steps" in card.read_text()
    card.write_text("# Mine\n")
    train(replace(config, max_steps=4, resume=True))
    assert card.read_text() == "# Mine\n"
    assert f"{card}: was edited, so it stays as it is" in capsys.readouterr().out
