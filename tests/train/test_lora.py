"""Only adapters learn, and the checkpoint has them merged into plain weights."""

from dataclasses import replace

import pytest
import torch
from cut_off import cut_off
from packed_models import make_model, trajectories
from transformers import AutoModelForTokenClassification

from pqm_fast.data.pack import pack
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.loop import train
from pqm_fast.train.lora import adapted, add_adapters, merged_state

pytest.importorskip("peft")


def disturb(model):
    """Makes the adapters change the output. New ones do not: their second factor is zero."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p, std=0.3)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3_text"])
def test_merged_weights_are_what_the_adapters_compute(tmp_path, architecture):
    model = make_model(tmp_path, architecture).eval()
    plain = make_model(tmp_path, architecture).eval()
    plain.load_state_dict(model.state_dict())
    assert not adapted(model.classifier)
    add_adapters(model, rank=4, alpha=8)
    assert adapted(model.classifier)
    batch = pack(list(enumerate(trajectories())))
    assert (model.scores(batch) - plain.scores(batch)).abs().max() <= 1e-6
    disturb(model)
    assert (model.scores(batch) - plain.scores(batch)).abs().max() > 1e-2
    plain.classifier.load_state_dict(
        merged_state(model.classifier, model.classifier.state_dict())
    )  # strict: with the original names
    assert (model.scores(batch) - plain.scores(batch)).abs().max() <= 1e-5


def test_only_adapters_and_the_head_learn(tmp_path):
    model = make_model(tmp_path, "qwen2")
    add_adapters(model, rank=2, alpha=4)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name or ".score." in name for name in learned)
    assert len(learned) == 3 * 7 * 2 + 2
    model(pack(list(enumerate(trajectories()))), loss="rank", zeta=2.0).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == learned


def test_alpha_scales_the_adapters(tmp_path):
    moved = []
    for alpha in (4, 8):
        model = make_model(tmp_path)
        add_adapters(model, rank=4, alpha=alpha)
        disturb(model)
        before = model.state_dict()["classifier.model.layers.0.mlp.up_proj.base_layer.weight"]
        moved.append(
            merged_state(model.classifier, model.classifier.state_dict())["model.layers.0.mlp.up_proj.weight"] - before
        )
    assert moved[0].norm() > 0.1
    assert float(moved[1].norm() / moved[0].norm()) == pytest.approx(2, rel=0.3)  # other random first factors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_with_adapters_gives_a_plain_checkpoint(configure, tmp_path, dtype):
    """Resumed, to the bit the same."""
    config = configure(lora_rank=4, dtype=dtype, save_every=3, max_steps=5)
    train(config)
    before = StepQModel.from_pretrained(config.model)
    after = StepQModel.from_pretrained(str(config.folder))
    assert after.load_report.complete
    assert before.state_dict().keys() == after.state_dict().keys()
    _, info = AutoModelForTokenClassification.from_pretrained(config.folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    whole = (config.folder / "model.safetensors").read_bytes()
    cut_off(config.folder, 3)
    train(replace(config, resume=True))
    assert (config.folder / "model.safetensors").read_bytes() == whole
