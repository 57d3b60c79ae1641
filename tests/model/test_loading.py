"""Which models load, with which head and weights, and the messages for those that do not."""

import pytest
import tiny
import torch
from packed_models import make_model
from transformers import AutoModelForTokenClassification

from pqm_fast.data.encode import Template
from pqm_fast.errors import PQMError
from pqm_fast.model.loading import load_classifier, load_config
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.model.tokenizer import load_tokenizer


def test_a_causal_lm_loads_without_its_head(tmp_path):
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_config(tiny.config("llama", tie_word_embeddings=False))
    lm.save_pretrained(tmp_path / "lm")
    model = StepQModel.from_pretrained(str(tmp_path / "lm"))
    assert model.load_report.notes == ["the Q-value head is new"]
    assert not model.load_report.complete
    assert not any("lm_head" in name for name, _ in model.named_parameters())
    assert torch.equal(model.backbone.layers[0].mlp.up_proj.weight, lm.model.layers[0].mlp.up_proj.weight)


def test_a_note_says_that_transformers_replaces_a_tokenizer(tmp_path):
    for architecture, count in (("llama", 0), ("qwen2", 1)):
        notes = []
        load_tokenizer(str(tiny.model_folder(tmp_path / architecture, architecture)), notes)
        assert len(notes) == count
    assert "replaces the one in" in notes[0]


def test_attention_in_chunks_is_refused(tmp_path):
    config = tiny.config("llama")
    config.attention_chunk_size = 16
    config.save_pretrained(tmp_path / "chunked")
    with pytest.raises(PQMError, match="llama attends in chunks"):
        StepQModel.from_pretrained(str(tmp_path / "chunked"))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_random_weights_are_drawn_on_their_device(tmp_path, architecture):
    folder = str(tiny.model_folder(tmp_path / architecture, architecture))
    made, report = load_classifier(folder, load_config(folder), torch.bfloat16, "meta")
    assert {t.device.type for t in (*made.parameters(), *made.buffers())} == {"meta"}
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert report.notes == [f"{folder} holds a config but no weights: starting from random ones"]
    assert not report.complete


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
def test_random_weights_on_the_cpu_are_those_of_transformers(tmp_path, architecture):
    """Including the buffers, such as the frequencies of rotary embeddings."""
    folder = str(tiny.model_folder(tmp_path / architecture, architecture))
    torch.manual_seed(3)
    ours, _ = load_classifier(folder, load_config(folder), torch.float32, torch.device("cpu"))
    torch.manual_seed(3)
    expected = AutoModelForTokenClassification.from_config(load_config(folder))
    for tensors in ("named_parameters", "named_buffers"):
        drawn = dict(getattr(ours, tensors)())
        assert all(torch.equal(drawn.pop(name), tensor) for name, tensor in getattr(expected, tensors)())
        assert not drawn


@pytest.mark.gpu
def test_random_weights_on_a_gpu_keep_the_rotary_frequencies(tmp_path):
    folder = str(tiny.model_folder(tmp_path / "llama"))
    on_gpu, on_cpu = (
        dict(load_classifier(folder, load_config(folder), torch.float32, device)[0].named_buffers())
        for device in ("cuda", "cpu")
    )
    assert on_gpu.keys() == on_cpu.keys()
    for name, tensor in on_gpu.items():
        torch.testing.assert_close(tensor.cpu(), on_cpu[name], rtol=2**-22, atol=0.0)


def test_unusable_models_are_refused_by_name(tmp_path):
    with pytest.raises(PQMError, match="nowhere: no such folder"):
        StepQModel.from_pretrained(str(tmp_path / "nowhere"))
    for kind in ("t5", "bert"):
        from transformers import AutoConfig

        AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(PQMError, match=f"{kind} is not a decoder"):
            StepQModel.from_pretrained(str(tmp_path / kind))
    model = make_model(tmp_path, "qwen2")
    model.save(tmp_path / "other", tiny.tokenizer(), Recipe(Template()))
    tiny.config("llama", num_hidden_layers=5).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "SHA256SUMS").unlink()  # which would reveal any change
    with pytest.raises(PQMError, match="do not fit the architecture llama"):
        StepQModel.from_pretrained(str(tmp_path / "other"))


def test_an_architecture_with_state_across_tokens_is_refused(tmp_path):
    from transformers import AutoConfig

    mamba = AutoConfig.for_model("mamba", vocab_size=97, hidden_size=32, state_size=4, num_hidden_layers=2)
    mamba.save_pretrained(tmp_path / "mamba")
    with pytest.raises(PQMError, match="mamba"):
        StepQModel.from_pretrained(str(tmp_path / "mamba"))
