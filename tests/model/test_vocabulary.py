"""The step token gets an embedding, and a foreign tokenizer is refused."""

import pytest
import tiny
import torch
from packed_models import make_model

from pqm_fast.errors import PQMError


def test_new_step_token_uses_a_spare_row_or_grows(tmp_path):
    model = make_model(tmp_path)
    embedding = model.classifier.get_input_embeddings().weight.detach().clone()
    note = model.fit_vocabulary(tiny.tokenizer(90), "<|step|>")
    assert note == "step token '<|step|>' was added as id 90"
    after = model.classifier.get_input_embeddings().weight
    assert after.shape == (97, 32)
    assert torch.allclose(after[90], embedding[:90].mean(0))
    assert torch.equal(after[:90], embedding[:90])

    full = make_model(tmp_path)
    note = full.fit_vocabulary(tiny.tokenizer(97), "<|step|>")
    assert "grew from 97 to 128 rows" in note
    assert full.config.vocab_size == 128
    assert full.fit_vocabulary(tiny.tokenizer(97), "w5") is None
    assert full.fit_vocabulary(tiny.tokenizer(97), "last") is None


def test_every_id_of_the_tokenizer_has_an_embedding(tmp_path):
    """Including ids that were added to the tokenizer, and a step token that it already knows."""
    tokenizer = tiny.tokenizer(97)
    tokenizer.add_tokens(["<|step|>"])  # id 97, one beyond the embedding
    model = make_model(tmp_path)
    assert "grew from 97 to 128 rows" in model.fit_vocabulary(tokenizer, "<|step|>")
    assert torch.isfinite(model.embedding).all()
    tokenizer.add_tokens(["word"] + [f"word{i}" for i in range(40)])
    with pytest.raises(PQMError, match="ids up to 138 but the embedding only 128 rows"):
        model.fit_vocabulary(tokenizer, "<|step|>")
