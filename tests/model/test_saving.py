"""A checkpoint is a plain `*ForTokenClassification` folder, and loads as what was saved."""

import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from flip import flip
from packed_models import make_model, trajectories
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from pqm_fast.data.encode import Encoder, Template
from pqm_fast.data.pack import pack
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.scoring.scorer import Scorer


def test_checkpoint_is_a_token_classification_folder(tmp_path):
    """AutoModelForTokenClassification gives the scores of Scorer, and saving it again loses nothing."""
    model = make_model(tmp_path).eval()
    tokenizer = tiny.tokenizer(90)
    assert "was added as id 90" in model.fit_vocabulary(tokenizer, "<|step|>")
    model.save(tmp_path / "out", tokenizer, Recipe(Template(), "rank", 4.0), torch.float32)

    rng = np.random.default_rng(0)
    solutions = [(tiny.text(rng, 5), [tiny.text(rng, int(n)) for n in rng.integers(1, 7, 4)]) for _ in range(7)]
    scorer = Scorer.from_pretrained(tmp_path / "out", max_tokens=64, device="cpu")
    got = scorer.score(solutions)

    for folder in ("out", "again"):
        plain, info = AutoModelForTokenClassification.from_pretrained(
            tmp_path / folder, dtype=torch.float32, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert plain.config.num_labels == 1
        assert plain.config.problem_type == "regression"
        assert plain.config.classifier_dropout == 0.0
        assert plain.config.pqm_fast["template"] == Template().to_dict()
        step = tokenizer.convert_tokens_to_ids("<|step|>")
        for (question, steps), scores in zip(solutions, got, strict=True):
            ids = torch.tensor([tokenizer.encode(f"{question}\n" + "".join(f"{s}\n<|step|>" for s in steps))])
            with torch.no_grad():
                logits = plain.eval()(input_ids=ids).logits[0, :, 0]
            assert logits[ids[0] == step].tolist() == pytest.approx(scores, abs=1e-5)
        if folder == "out":
            plain.save_pretrained(tmp_path / "again")
    first = AutoModelForTokenClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    second = plain.state_dict()
    assert first.keys() == second.keys()
    assert {"score.weight", "score.bias"} < first.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_pipeline_of_transformers_as_documented(tmp_path):
    """Its softmax over one label is always 1, which means nothing; docs/reference/formats.md shows what to call."""
    model = make_model(tmp_path).eval()
    tokenizer = tiny.tokenizer(90)
    model.fit_vocabulary(tokenizer, "<|step|>")
    model.save(tmp_path / "out", tokenizer, Recipe(Template()), torch.float32)
    [expected] = Scorer.from_pretrained(tmp_path / "out", device="cpu").score([("w3 w4", ["w5", "w6 w7"])])
    text = "w3 w4 w5 <|step|> w6 w7 <|step|>"
    classify = pipeline("token-classification", model=str(tmp_path / "out"), dtype=torch.float32, ignore_labels=[])
    assert [found["score"] for found in classify(text)] == [1.0] * 7

    document = (Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "pipeline(" in block]
    names = {"text": text}
    exec(code.replace('"RUN"', repr(str(tmp_path / "out"))), names)
    assert names["q"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_save_and_load_give_the_same_scores(tmp_path, architecture):
    model = make_model(tmp_path, architecture).eval()
    batch = pack(list(enumerate(trajectories())), labelled_only=False)
    model.save(tmp_path / "out", tiny.tokenizer(), Recipe(Template(step_token="last")), torch.float32)
    again = StepQModel.from_pretrained(str(tmp_path / "out")).eval()
    assert again.load_report.complete
    assert again.load_report.notes == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    # bit for bit only if the weights are laid out alike in memory
    assert (model.scores(batch) - again.scores(batch)).abs().max() <= 1e-6
    assert Recipe.from_config(again.config, "out") == Recipe(Template(step_token="last"))


def test_default_checkpoint_is_bfloat16_throughout(tmp_path):
    from safetensors.torch import load_file

    model = make_model(tmp_path)
    model.save(tmp_path / "out", tiny.tokenizer(), Recipe(Template()))
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # the model itself is unchanged


def test_tokenizer_of_a_checkpoint_round_trips(tmp_path):
    model = make_model(tmp_path)
    tokenizer = tiny.tokenizer(90)
    model.fit_vocabulary(tokenizer, "<|step|>")
    model.save(tmp_path / "out", tokenizer, Recipe(Template()))
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    [encoded] = Encoder(again, Template(), 100)([Record("r", "w3 w4", ["w5", "w6 w7"])])
    assert encoded.input_ids.tolist() == [3, 4, 5, 90, 6, 7, 90]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    make_model(tmp_path).save(tmp_path / "out", tiny.tokenizer(), Recipe(Template()))
    flip(tmp_path / "out" / "model.safetensors")
    with pytest.raises(PQMError, match=r"model\.safetensors"):
        StepQModel.from_pretrained(str(tmp_path / "out"))
