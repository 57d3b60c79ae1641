"""The main job on real input: PRMBench -> train -> checkpoint -> score ProcessBench and GSM8K candidates -> evaluate.

The model is small and random, trained for a few steps: the figures are poor, the path must be right.
"""

import json

import numpy as np
import pytest
from transformers import AutoConfig

from pqm_fast.cli import main
from pqm_fast.data import read_records
from pqm_fast.data.encode import Encoder, Template, ensure_step_token
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.token_cache import load_dataset
from pqm_fast.model.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def shared(request):
    from shared import SHARED

    if not (SHARED / "data" / "prmbench_train.jsonl").exists():
        pytest.skip("real data not present: prmbench_train.jsonl (expected beside the repository, in shared/)")
    return SHARED


@pytest.fixture(scope="module")
def trained(shared, tmp_path_factory):
    """A checkpoint after 3 steps on some 500 records of PRMBench, made through the command line."""
    folder = tmp_path_factory.mktemp("real")
    model = folder / "model"
    model.mkdir()
    for file in (shared / "tokenizers" / "qwen2").iterdir():
        if file.name != "config.json":
            (model / file.name).write_bytes(file.read_bytes())
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("qwen2", vocab_size=151936, num_key_value_heads=2, tie_word_embeddings=True, **shape)
    config.save_pretrained(model)
    lines = (shared / "data" / "prmbench_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "prmbench.jsonl").write_text("".join(lines[:: len(lines) // 500]), encoding="utf-8")
    arguments = f"train --model {model} --data {folder}/prmbench.jsonl --out {folder}/run --skip-bad"
    arguments += f" --cache-dir {folder}/cache --device cpu --no-progress --max-steps 3 --micro-batch-tokens 2048"
    arguments += " --learning-rate 1e-3 --eval-every 0 --eval-limit 50 --eval-fraction 0.1 --log-every 1 --save-every 0"
    assert main(arguments.split()) == 0
    return folder


def test_training_on_prmbench(trained):
    rows = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)
    [final] = [row for row in rows if row["kind"] == "eval"]
    assert 0.8 < final["share_correct"] < 0.95  # 0.878 in the whole file
    config = json.loads((trained / "run" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForTokenClassification"]
    assert config["vocab_size"] == 151936  # the step token took a spare row
    assert config["dtype"] == "bfloat16"


def test_scoring_and_evaluating_processbench(trained, shared, capsys):
    scores, result = trained / "processbench.jsonl", trained / "processbench.json"
    data = trained / "data.json"
    labelled = json.loads((shared / "data" / "processbench_gsm8k.json").read_text(encoding="utf-8"))[::8]
    data.write_text(json.dumps(labelled), encoding="utf-8")
    assert main(f"score --model {trained}/run --data {data} --out {scores} --device cpu --no-progress".split()) == 0
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    assert len(rows) == 50
    assert all(len(row["scores"]) == len(row["completions"]) for row in rows)
    assert all(isinstance(q, float) for row in rows for q in row["scores"])
    assert main(f"evaluate --data {scores} --out {result}".split()) == 0
    figures = json.loads(result.read_text())
    wrong = sum(record["label"] >= 0 for record in labelled)
    assert 0 < wrong < 50
    assert figures["processbench"]["erroneous"] == wrong
    assert figures["processbench"]["correct"] == 50 - wrong
    assert 0 <= figures["steps"]["auroc"] <= 1
    assert "ProcessBench" in capsys.readouterr().out


def test_best_of_n_on_the_gsm8k_pool(trained, shared, capsys):
    """Whatever the model, the accuracies of the four policies and the yardsticks are facts of the data."""
    pool = json.loads((shared / "data" / "gsm8k_best_of_4.json").read_text())[:20]
    part, result = trained / "pool.json", trained / "pool-result.json"
    part.write_text(json.dumps(pool))
    arguments = f"evaluate --model {trained}/run --data {part} --out {result} --aggregate min last prod --device cpu"
    assert main([*arguments.split(), "--no-progress"]) == 0
    figures = json.loads(result.read_text())
    assert figures["overall"]["candidates"] == 80
    assert set(figures["policies"]) == {"6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"}
    best = figures["overall"]["best_of_n"]
    assert set(best) == {"min", "last", "prod"}
    for how in best:
        assert best[how]["1"]["mean"] == pytest.approx(figures["overall"]["mean_accuracy"]["mean"])
        assert best[how]["4"]["mean"] <= figures["overall"]["pass_at_n"]["4"]["mean"]
    assert "Best-of-N" in capsys.readouterr().out


def test_scores_do_not_depend_on_packing(trained, shared):
    from pqm_fast import Scorer

    records = list(read_records(shared / "data" / "processbench_gsm8k.json"))[:6]
    solutions = [(r.prompt, r.steps) for r in records]
    packed = Scorer.from_pretrained(trained / "run", device="cpu").score(solutions)
    alone = Scorer.from_pretrained(trained / "run", device="cpu", max_tokens=1).score(solutions)
    for a, b in zip(packed, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_every_sample_of_real_formats_encodes(shared, tmp_path):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "qwen2"))
    ensure_step_token(tokenizer, Template().step_token)
    encoder = Encoder(tokenizer, Template(), 2048)
    for name, count in (
        ("math_shepherd_sample.jsonl", 7),
        ("prm800k_sample.jsonl", 34),
        ("processbench_gsm8k.json", 400),
    ):
        dataset = load_dataset([str(shared / "data" / name)], ReadOptions(), encoder, str(tmp_path))
        assert len(dataset) == count
        assert all((~np.isnan(dataset[i].labels)).any() for i in range(count))
        assert (dataset.steps_cut == 0).all()
        first = dataset[0]
        assert first.input_ids[first.step_tokens].tolist() == [encoder.step_id] * len(first.step_tokens)
