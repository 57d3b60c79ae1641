"""Text to tokens: step tokens, cutting at the end of a step, and records that are refused."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from pqm_fast.data.encode import Encoded, Encoder, Template, ensure_step_token
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError


@pytest.fixture(scope="module")
def qwen2(shared_tokenizer):
    """With the step token of the default template, which most tests need."""
    tokenizer = AutoTokenizer.from_pretrained(shared_tokenizer)
    ensure_step_token(tokenizer, Template().step_token)
    return tokenizer


@pytest.fixture
def fresh_qwen2(shared_tokenizer):
    return AutoTokenizer.from_pretrained(shared_tokenizer)


def record(*steps, prompt="What is 2+3*4?"):
    return Record("r1", prompt, list(steps))


def encode(tokenizer, *records, template=None, max_length=1000):
    template = template or Template()
    ensure_step_token(tokenizer, template.step_token)
    return Encoder(tokenizer, template, max_length)(records)


def test_pieces_and_rows_with_a_step_token(qwen2):
    [got] = encode(qwen2, record("3*4=12", "2+12=14"))
    [step] = qwen2.encode("<|step|>")
    assert qwen2.decode(got.input_ids) == "What is 2+3*4?\n3*4=12\n<|step|>2+12=14\n<|step|>"
    assert got.input_ids[got.step_tokens].tolist() == [step, step]
    assert got.step_tokens[-1] == len(got.input_ids) - 1
    # nothing is tokenised across a boundary: the whole text gives the same tokens
    assert qwen2.encode("What is 2+3*4?\n3*4=12\n<|step|>2+12=14\n<|step|>") == got.input_ids.tolist()


def test_last_reads_the_last_token_of_each_step(qwen2):
    [got] = encode(qwen2, record("3*4=12", "2+12=14"), template=Template(step_token="last"))
    assert qwen2.decode(got.input_ids) == "What is 2+3*4?\n3*4=12\n2+12=14\n"
    assert qwen2.decode(got.input_ids[: got.step_tokens[0] + 1]) == "What is 2+3*4?\n3*4=12\n"
    assert len(got.step_tokens) == 2


def test_a_step_does_not_depend_on_its_neighbours(qwen2):
    alone, after = encode(qwen2, record("so x = 1."), record("first we look.", "so x = 1."))
    own = alone.input_ids[len(qwen2.encode("What is 2+3*4?\n")) :]
    assert after.input_ids[-len(own) :].tolist() == own.tolist()


def test_existing_single_tokens_are_used_and_others_added(fresh_qwen2):
    known, before = len(fresh_qwen2), fresh_qwen2.encode("<|im_start|>user")
    assert not ensure_step_token(fresh_qwen2, "<|endoftext|>")
    assert len(fresh_qwen2) == known
    assert len(fresh_qwen2.encode(" ки")) == 2  # Math-Shepherd's marker is no single token here
    assert ensure_step_token(fresh_qwen2, " ки")
    assert len(fresh_qwen2.encode(" ки", add_special_tokens=False)) == 1
    assert len(fresh_qwen2) == known + 1
    assert not ensure_step_token(fresh_qwen2, " ки")
    assert fresh_qwen2.encode("<|im_start|>user") == before  # its special tokens stay


def test_a_step_token_that_is_several_tokens_is_refused(qwen2):
    with pytest.raises(PQMError, match="step token 'two words' is not one token"):
        Encoder(qwen2, Template(step_token="two words"), 100)


def test_over_long_records_are_cut_at_a_step_boundary(qwen2):
    steps = ["one two three four", "five six seven eight", "nine ten"]
    [whole] = encode(qwen2, record(*steps))
    limit = int(whole.step_tokens[1]) + 3  # two steps and some tokens of the third
    [cut] = encode(qwen2, record(*steps), max_length=limit)
    assert cut.steps_cut == 1
    assert len(cut.step_tokens) == 2
    assert cut.input_ids.tolist() == whole.input_ids[: whole.step_tokens[1] + 1].tolist()
    [exact] = encode(qwen2, record(*steps), max_length=len(whole.input_ids))
    assert exact.steps_cut == 0
    [shorter] = encode(qwen2, record(*steps), max_length=len(whole.input_ids) - 1)
    assert shorter.steps_cut == 1


def test_what_cannot_be_encoded_is_named(qwen2):
    good, long_question, inside = encode(
        qwen2,
        Record("ok", "q", ["s"]),
        Record("long", "word " * 50, ["s"]),
        Record("inside", "q", ["a<|step|>b"]),
        max_length=20,
    )
    assert isinstance(good, Encoded)
    assert isinstance(long_question, RecordError)
    assert "record long: the question" in str(long_question)
    assert "limit of 20 tokens" in str(long_question)
    assert "record inside: the step token '<|step|>' occurs in one of its steps" in str(inside)
    assert inside.kind == "step token in the text"


def test_braces_in_a_question_are_text_and_no_placeholder(qwen2):
    [got] = encode(qwen2, Record("r", r"\frac{1}{2} {prompt} {step}", ["{step}"]), template=Template())
    assert r"\frac{1}{2} {prompt} {step}" in qwen2.decode(got.input_ids)


@pytest.mark.parametrize("prompt_format", ["{prompt}\n", "chat"])
@pytest.mark.parametrize(("first", "joins"), [("8/4 = 2", False), (" 8/4 = 2", False), ("\n8/4 = 2", True)])
def test_pieces_and_the_whole_text_differ_where_line_breaks_meet(qwen2, prompt_format, first, joins):
    """A server that tokenises the whole text joins the line break that ends the question with the one that begins the
    step."""
    question, steps = "What is 8/4+7?", [first, "2+7 = 9"]
    template = Template(prompt_format=prompt_format, step_token="last").resolve(qwen2)
    [got] = encode(qwen2, record(*steps, prompt=question), template=template)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "\n".join(steps)}]
    text = (
        qwen2.apply_chat_template(turns, tokenize=False)
        if prompt_format == "chat"
        else f"{question}\n" + "\n".join(steps)
    )
    written = qwen2.decode(got.input_ids).removesuffix("\n")
    assert text.startswith(written)
    whole = qwen2.encode(written)
    assert (len(got.input_ids) - 1 - len(whole), got.input_ids[:-1].tolist() == whole) == (int(joins), not joins)


@pytest.mark.parametrize("question", ["2+3?", "\n2+3?\n", "  2+3?  ", "a\n\n"])
def test_the_question_joins_the_chat_template_as_the_tokenizer_does_it(qwen2, question):
    template = Template(prompt_format="chat").resolve(qwen2)
    expected = qwen2.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    [got] = encode(qwen2, Record("r", question, ["5"]), template=template)
    assert got.input_ids[: len(expected)].tolist() == expected


@pytest.mark.parametrize(
    "options",
    [{"prompt_format": "Q:"}, {"step_format": "{prompt}"}, {"step_token": ""}, {"step_format": "{step}{step}"}],
)
def test_bad_templates_are_refused(options):
    with pytest.raises(PQMError, match=r"exactly once|step token: empty"):
        Template(**options)


def test_bos_of_the_tokenizer_stands_first_and_once(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<s>", "<unk>", "q", "a", "b"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    for prompt_format in ("{prompt}\n", "<s> {prompt}\n"):
        template = Template(prompt_format=prompt_format, step_token="last")
        [got] = encode(tokenizer, Record("r", "q", ["a", "b a"]), template=template)
        assert got.input_ids.tolist() == [0, 2, 3, 4, 3]
        assert got.step_tokens.tolist() == [2, 4]
    [blank] = encode(tokenizer, Record("r", "q", ["a", "\n"]), template=template)
    assert "step 2 of 2 has no tokens" in str(blank)
    assert got.input_ids.dtype == np.int32
