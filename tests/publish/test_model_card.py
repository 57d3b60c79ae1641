"""The model card: its code runs and gives the scores of Scorer, its figures are those of the run, and it gives nothing
away."""

import re
from dataclasses import replace

import pytest
import tiny
import yaml
from checkpoints import checkpoint
from tokenizers import processors

from pqm_fast.publish.card_text import Training
from pqm_fast.publish.model_card import CARD_FILE, write_card
from pqm_fast.scoring.scorer import Scorer

TRAINING = Training(
    base_model="org/base-model",
    data=("org/steps:train",),
    trajectories=2580,
    questions=376,
    steps=21000,
    optimizer_steps=1200,
    learning_rate=2e-4,
    dtype="bfloat16",
    lora_rank=0,
    held_out={},
)
HELD_OUT = {"loss": 0.4289, "auroc": 0.7758, "pair_accuracy": 0.0, "first_error_accuracy_calibrated": None}
HELD_OUT |= {"trajectories": 171, "steps": 1925, "share_correct": 0.847}


def card(folder, **changes):
    (folder / CARD_FILE).unlink(missing_ok=True)
    assert write_card(folder, replace(TRAINING, **changes))
    return (folder / CARD_FILE).read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("card"), loss="rank", zeta=2.5, compare="sibling", compare_weight=3.0)


def with_bos(size):
    tokenizer = tiny.tokenizer(size)
    tokenizer.bos_token = "w7"
    start = processors.TemplateProcessing(single="w7 $A", special_tokens=[("w7", 7)])
    tokenizer.backend_tokenizer.post_processor = start
    return tokenizer


@pytest.mark.parametrize(("step_token", "bos"), [("<|step|>", False), ("<|step|>", True), ("last", False)])
def test_its_code_gives_the_scores(tmp_path, step_token, bos):
    folder = checkpoint(tmp_path, step_token, tokenizer=with_bos(90) if bos else None)
    text = card(folder)
    results = []
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        names = {}
        code = code.replace('"MODEL"', repr(str(folder)))
        exec(code.replace('question, steps = "What is 7 - 2?", ["7 - 2 = 5"]', WORDS), names)
        results.append(names["q"])
    [expected] = Scorer.from_pretrained(folder, device="cpu").score([("w3 w4", ["w5", "w6 w7"])])
    ours, plain = results
    assert ours == expected
    assert plain == pytest.approx(expected, abs=1e-5)
    assert ("+ [90]" in text) == (step_token != "last")
    assert ("ids, ends = [7] + tokens" in text) == bos


WORDS = 'question, steps = "w3 w4", ["w5", "w6 w7"]'


def test_the_metadata_is_what_the_hub_reads(run, tmp_path):
    metadata = yaml.safe_load(card(run).split("---\n")[1])
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "token-classification",
        "base_model": "org/base-model",
        "tags": ["process-reward-model", "reward-model", "pqm-fast"],
    }
    assert "base_model" not in yaml.safe_load(card(run, base_model=str(tmp_path)).split("---\n")[1])


def test_the_recipe(run):
    lines = card(run, lora_rank=8).splitlines()
    for line in (
        "- base model: [org/base-model](https://huggingface.co/org/base-model), with LoRA adapters of rank 8, merged",
        "- data: `org/steps:train` (2,580 solutions, 376 questions, 21,000 steps)",
        "- loss: `rank` plus 3 times `sibling`, zeta 2.5",
        "- step token: `<|step|>`, id 90",
        "- 1,200 optimizer steps, peak learning rate 0.0002",
    ):
        assert line in lines
    started = card(run, init_head="/home/me/runs/head").splitlines()
    base = "- base model: [org/base-model](https://huggingface.co/org/base-model)"
    assert f"{base}, starting from the head of `head`" in started
    assert any(line.startswith("- computed in bfloat16, stored in float32, with pqm-fast ") for line in lines)
    assert "- data: `org/steps:train`\n" in card(run, trajectories=None, questions=None, steps=None)


def test_only_the_numbers_that_the_losses_read(tmp_path):
    assert "- loss: `bce`\n" in card(checkpoint(tmp_path / "bce", loss="bce"))
    noisy = card(checkpoint(tmp_path / "noisy", "last", loss="first-error-noisy", noise=(0.05, 0.2)))
    assert "- loss: `first-error-noisy`, noise 0.05 and 0.2\n" in noisy
    assert "- step token: none\n" in noisy


def test_figures_are_shown_as_measured_or_not_at_all(run):
    text = card(run, held_out=HELD_OUT)
    figures = {name.strip(): value.strip() for name, value in re.findall(r"^\| ([^|]+) \| ([\d.]+) \|", text, re.M)}
    assert figures == {"AUROC": "0.776", "pair accuracy": "0.000", "loss": "0.429"}
    assert "171 solutions, with 1,925 labelled steps, of which 84.7% are correct" in text
    text = card(run, held_out={"loss": 0.5, "trajectories": 0, "steps": 0, "share_correct": None})  # outcomes alone
    assert "to questions that were not trained on.\n" in text
    text = card(run)
    assert "Figures" not in text
    assert "The figures above" not in text


def test_no_path_and_no_key_is_given_away(run, tmp_path, monkeypatch):
    private = tmp_path / "secret-place" / "base"
    private.mkdir(parents=True)
    (private / "train.jsonl").write_text("")
    monkeypatch.chdir(private)
    moved = "/home/secret-place/moved.jsonl"
    for model, data in ((private, private / "train.jsonl"), (".", "./train.jsonl"), ("../base", f"{private}/*.jsonl")):
        text = card(run, base_model=str(model), data=(str(data), moved))
        assert "secret-place" not in text
        assert str(run.parent) not in text
        assert "base model: `base`" in text
        assert ("`*.jsonl`" if "*" in str(data) else "`train.jsonl`") + ", `moved.jsonl`" in text


def test_a_card_that_someone_has_edited_stays(run):
    text = card(run)
    assert write_card(run, replace(TRAINING, optimizer_steps=7))  # ours: replaced
    assert "- 7 optimizer steps" in (run / CARD_FILE).read_text()
    for edited in (text.replace("2,580", "2,581"), f"{text}More.\n", f"More.\n{text}", "# Mine\n", ""):
        (run / CARD_FILE).write_text(edited)
        assert not write_card(run, TRAINING)
        assert (run / CARD_FILE).read_text() == edited
    (run / CARD_FILE).write_bytes(b"\xff mine")
    assert not write_card(run, TRAINING)


def test_a_model_that_only_pqm_fast_loads(tmp_path):
    text = card(checkpoint(tmp_path, architecture="gemma3_text"))
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "pqm-fast"
    assert "transformers has no Gemma3TextForTokenClassification: only pqm-fast loads it." in text
    for absent in ("AutoModel", "vllm", "pipeline("):
        assert absent not in text
