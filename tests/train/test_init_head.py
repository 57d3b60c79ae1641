"""A run that starts from the head of another checkpoint, and the heads that do not fit."""

import shutil
from dataclasses import replace

import pytest
import tiny
import torch
from cut_off import cut_off
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pqm_fast.common.checksums import SUMS_FILE
from pqm_fast.data.encode import Template
from pqm_fast.errors import PQMError
from pqm_fast.model.cut import cut_backbone
from pqm_fast.model.loading import classification_class
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.publish.model_card import CARD_FILE
from pqm_fast.train.loop import train
from pqm_fast.train.run import prepare

LAST = Template(step_token="last")


def checkpoint(folder, recipe=None, *, model=None, dtype=torch.float32):
    """A checkpoint with a head of random numbers, by default on the backbone of `configure`. Returns the head."""
    torch.manual_seed(7)
    model = model or StepQModel(backbone("llama"))
    for parameter in model.head.parameters():
        nn.init.normal_(parameter)
    model.save(folder, tiny.tokenizer(90), recipe or Recipe(LAST), dtype)
    return {name: p.detach().to(dtype).float() for name, p in model.head.named_parameters()}


def backbone(architecture, **changes):
    shape = {"num_hidden_layers": 2, "num_labels": 1, "classifier_dropout": 0.0}
    config = tiny.config(architecture, **(shape | changes))
    return classification_class(type(config))._from_config(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_is_that_of_the_checkpoint(configure, tmp_path, dtype):
    head = checkpoint(tmp_path / "head", Recipe(LAST, "rank", 4.0), dtype=dtype)
    plain = prepare(configure("plain"))
    run = prepare(configure(init_head=str(tmp_path / "head")))
    own = dict(run.model.head.named_parameters())
    assert own.keys() == head.keys() == {"weight", "bias"}
    assert all(own[name].dtype == torch.float32 and torch.equal(own[name], head[name]) for name in head)
    rest = plain.model.state_dict()
    assert all(torch.equal(t, rest[n]) for n, t in run.model.state_dict().items() if ".score." not in n)
    assert f"head from {tmp_path / 'head'} (loss rank, zeta 4)" in run.notes
    assert not any("head is new" in note for note in run.notes)


@pytest.mark.parametrize("added", [False, True])
def test_a_backbone_with_other_weights_gives_a_warning(configure, small, tmp_path, added):
    """The backbone of the run itself gives none, in either dtype, with the embedding of a new step token or without."""
    path, run = tmp_path / "model", tmp_path / "head"
    shutil.copytree(small / "model", path)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)).save_pretrained(path)
    template = Template() if added else LAST
    options = {"model": str(path), "init_head": str(run), "template": template}

    def load():
        model = StepQModel.from_pretrained(str(path))
        model.fit_vocabulary(tiny.tokenizer(90), template.step_token)
        return model

    for dtype in (torch.float32, torch.bfloat16):
        checkpoint(run, Recipe(template), model=load(), dtype=dtype)
        assert not any("other weights" in note for note in prepare(configure(**options)).notes)
    for part in ("embed_tokens.weight", "layers.0.mlp.up_proj.weight", "layers.1.self_attn.q_proj.weight"):
        other = load()
        with torch.no_grad():
            other.backbone.get_parameter(part)[3] += 1
        checkpoint(run, Recipe(template), model=other)
        (warning,) = (note for note in prepare(configure(**options)).notes if "other weights" in note)
        assert warning.startswith(f"warning: the backbone of {run} has other weights than {path}, such as model.{part}")


def test_the_head_of_gpt2_and_of_a_loss_without_zeta(configure, tmp_path):
    folder = tiny.model_folder(tmp_path / "gpt2", "gpt2", n_layer=2)
    head = checkpoint(tmp_path / "head", Recipe(LAST, "bce"), model=StepQModel(backbone("gpt2", n_layer=2)))
    run = prepare(configure(model=str(folder), init_head=str(tmp_path / "head")))
    assert all(torch.equal(p, head[name]) for name, p in run.model.classifier.classifier.named_parameters())
    assert f"head from {tmp_path / 'head'} (loss bce)" in run.notes


def test_a_resumed_run_has_its_head_from_its_checkpoint(configure, tmp_path):
    """To the bit, though the head it started from is gone; but another --init-head is another run."""
    checkpoint(tmp_path / "head")
    options = {"init_head": str(tmp_path / "head"), "save_every": 2, "max_steps": 4}
    whole, cut = configure("whole", **options).folder, configure("cut", **options).folder
    train(configure("whole", **options))
    assert "starting from the head of `head`" in (whole / CARD_FILE).read_text()
    shutil.copytree(whole, cut)
    cut_off(cut, 2)
    shutil.rmtree(tmp_path / "head")
    for other in (None, "elsewhere"):
        with pytest.raises(PQMError, match="--resume needs the options of the run itself; different: init_head"):
            train(configure("cut", **(options | {"init_head": other}), resume=True))
    train(configure("cut", **options, resume=True))
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    train(configure("new", **(options | {"init_head": None})))
    assert (tmp_path / "new" / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()


def test_what_is_no_checkpoint(configure, small, tmp_path):
    for folder in (str(tmp_path / "nothing"), str(small / "model"), str(small / "data.jsonl"), "org/name"):
        with pytest.raises(PQMError, match=f"init_head: {folder} is not a checkpoint of pqm-fast; name the folder"):
            prepare(configure(init_head=folder))


def test_heads_of_other_backbones(configure, tmp_path):
    run, model = tmp_path / "head", configure().model
    checkpoint(run, model=StepQModel(backbone("llama", hidden_size=64)))
    with pytest.raises(PQMError, match=f"{run} is a llama of width 64, and {model} a llama of width 32"):
        prepare(configure(init_head=str(run)))
    checkpoint(run, model=StepQModel(backbone("mistral")))
    with pytest.raises(PQMError, match=f"{run} is a mistral of width 32, and {model} a llama of width 32"):
        prepare(configure(init_head=str(run)))
    cut = StepQModel(backbone("llama"))
    cut_backbone(cut.classifier, 1)
    checkpoint(run, model=cut)
    with pytest.raises(PQMError, match=f"{run} has 1 layers, and {model} has 2; .*Pass --model {run}, which is the"):
        prepare(configure(init_head=str(run)))
    assert prepare(configure(model=str(run))).model.load_report.complete


def test_heads_that_read_other_tokens(configure, tmp_path):
    run = tmp_path / "head"
    checkpoint(run, Recipe(Template("Q: {prompt}\n", "{step}\n", "<|step|>")))
    with pytest.raises(PQMError) as raised:
        prepare(configure(init_head=str(run)))
    assert str(raised.value).endswith(
        "prompt_format ('Q: {prompt}\\n' there, '{prompt}\\n' here), step_token ('<|step|>' there, 'last' here); "
        "pass --prompt-format 'Q: {prompt}\\n' --step-token '<|step|>'"
    )
    config = configure(init_head=str(run))
    assert prepare(replace(config, template=Template("Q: {prompt}\n"))).recipe.template.prompt_format == "Q: {prompt}\n"


def test_a_model_with_a_head_of_its_own(configure, tmp_path):
    checkpoint(tmp_path / "head")
    with pytest.raises(PQMError, match="head has a trained head itself; leave out --init-head to go on with that one"):
        prepare(configure(model=str(tmp_path / "head"), init_head=str(tmp_path / "head")))


def test_damaged_checkpoints(configure, tmp_path):
    run = tmp_path / "head"
    checkpoint(run)
    weights = run / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # not a map of the file
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(PQMError, match=r"model\.safetensors"):
        prepare(configure(init_head=str(run)))
    (run / SUMS_FILE).unlink()
    weights.write_bytes(b"nothing")
    with pytest.raises(PQMError, match=r"init_head: .*model\.safetensors cannot be read"):
        prepare(configure(init_head=str(run)))
    for changed in ({}, {"score.weight": torch.zeros(2, 32), "score.bias": torch.zeros(2)}):
        save_file({n: t for n, t in tensors.items() if not n.startswith("score.")} | changed, weights)
        with pytest.raises(PQMError, match="the weight of its head is missing or has another shape"):
            prepare(configure(init_head=str(run)))
