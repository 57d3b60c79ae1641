import random

import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from pqm_fast.arithmetic.models import FAMILIES, model_config, write_model
from pqm_fast.arithmetic.policies import make_policies
from pqm_fast.arithmetic.problems import draw_problems
from pqm_fast.arithmetic.tokenizer import EOS, PAD, UNK, make_tokenizer, words
from pqm_fast.errors import PQMError


def test_every_word_has_a_different_id():
    tokenizer = make_tokenizer(256)
    ids = [tokenizer(word).input_ids for word in words()]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids} | {tokenizer.pad_token_id, tokenizer.eos_token_id}) == len(words()) + 2
    assert tokenizer.unk_token_id not in {one[0] for one in ids}
    assert len(tokenizer) == len(words()) + 3
    assert 50 <= len(words()) <= 60
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == (PAD, EOS, UNK)


def test_no_unknown_word_in_thousands_of_solutions():
    tokenizer = make_tokenizer(256)
    texts = []
    for problem in draw_problems(400, random.Random(2)):
        texts.append(problem.text)
        for policy in make_policies(7).values():
            steps = policy.solve(problem, random.Random(problem.text))
            texts.append("\n".join(step.text for step in steps))
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " ".join(text.split())
    assert tokenizer("7 a -2 times").input_ids[-1] == tokenizer.unk_token_id


def test_it_comes_back_from_its_folder_beside_the_model_config(tmp_path):
    """With config.json in place AutoTokenizer may prefer the class of the model type to the saved one."""
    tokenizer = make_tokenizer(256)
    tokenizer.save_pretrained(tmp_path)
    model_config(tokenizer).save_pretrained(tmp_path)
    back = AutoTokenizer.from_pretrained(tmp_path)
    text = "7 a -2 b +1\na: 7 -2 =5\nb: 5 +1 =-4"
    assert back(text).input_ids == tokenizer(text).input_ids
    assert back.get_vocab() == tokenizer.get_vocab()
    assert back.decode(back(text).input_ids) == " ".join(text.split())
    assert (back.pad_token, back.eos_token, back.unk_token) == (PAD, EOS, UNK)
    assert back.is_fast
    assert AutoConfig.from_pretrained(tmp_path).pad_token_id == back.pad_token_id


def test_a_step_token_can_be_added():
    tokenizer = make_tokenizer(256)
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<step>"]}) == 1
    ids = tokenizer("a: 7 -2 =5 <step> b: 5").input_ids
    assert ids[4] == len(words()) + 3
    assert len(ids) == 7


def test_qwen2_splits_as_its_family_does_and_knows_every_word(tmp_path):
    write_model(tmp_path, "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("7 a -2") == ["7", "\u0120a", "\u0120-", "2"]
    text = "\n".join(words())
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert stored.encode(text, add_special_tokens=False).ids == tokenizer(text).input_ids  # nothing was replaced


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_own_shape(tmp_path, family):
    write_model(tmp_path, family)
    config = AutoConfig.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert config.model_type == family
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert config.num_key_value_heads == (4 if family == "llama" else 2)


def test_an_unknown_family_is_named(tmp_path):
    with pytest.raises(PQMError, match="gpt: the arithmetic world has llama, qwen2, mistral"):
        write_model(tmp_path, "gpt")
