"""Third-party PRMs: their Q-values are those of the model itself on the text that its authors write."""

import json

import numpy as np
import pytest
import tiny
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Model,
    Qwen2PreTrainedModel,
)

from pqm_fast.cli import main
from pqm_fast.data.encode import OverLong, Template
from pqm_fast.data.encode_text import TextEncoder, TextLayout
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.model.tokenizer import load_tokenizer
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.scoring.third_party import PRESETS, ThirdPartyPRM

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
)
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
SOLUTIONS = [
    ("3*4+2 {prompt}?", ["3*4 = 12", "so 12+2 = 14 {step}", "ответ: 14"]),
    ("3*4+2 {prompt}?", ["3*4 = 12", "so 12+2 = 15"]),
    ("1+1?", ["2\n\nreally"]),
]


def byte_tokenizer(chat_template: str | None = None, bos: bool = False) -> PreTrainedTokenizerFast:
    """Every byte is a token, and so are what the presets look for."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<eos>", "<bos>", "<extra_0>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
    special += ["<|start_header_id|>", "<|end_header_id|>", "ки"]
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    bos_token = {"bos_token": "<bos>"} if bos else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", **bos_token)
    tokenizer.chat_template = chat_template
    return tokenizer


def sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: a space before every text, characters without a token as bytes, a BOS token."""
    space = "\u2581"
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [space, *"Step:0123456789=+-?ки", f"{space}к", f"{space}ки", f"{space}+", f"{space}-"]
    merges = [(space, "к"), (f"{space}к", "и"), (space, "+"), (space, "-")]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):
    """As the model's own file has it: two labels behind a hidden layer."""

    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size), nn.ReLU(), nn.Linear(config.hidden_size, 2)
        )
        self.post_init()


def trl(tokenizer, question, steps):
    """`PRMTrainer.tokenize_row`: pieces one by one, the label at the separator's last token."""
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    ids, rows = [tokenizer.bos_token_id, *ids] if tokenizer.bos_token_id is not None else ids, []
    for step in steps:
        ids = ids + tokenizer(step, add_special_tokens=False)["input_ids"] + tokenizer.encode("\n")
        rows.append(len(ids) - 1)
    return [(ids, rows)]


def qwen(tokenizer, question, steps):
    """The model card: the chat template around all of it, read at every <extra_0>."""
    messages = [
        {"role": "system", "content": QWEN_SYSTEM},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
    return [(ids, np.flatnonzero(np.array(ids) == tokenizer.encode("<extra_0>")[0]).tolist())]


def shepherd(tokenizer, question, steps):
    """The model card: one text, read at every ки."""
    text = f"{question} " + "\n".join(f"{step} ки" for step in steps)
    ids = tokenizer.encode(text)
    return [(ids, np.flatnonzero(np.array(ids) == tokenizer.encode("ки")[-1]).tolist())]


def rlhflow(tokenizer, question, steps):
    """math-rm/prm_evaluate.py: a conversation that grows by a step, "the +/- is predicted by the '-3' position"."""
    conversation, parts = [], []
    for k, step in enumerate(steps):
        conversation.append({"role": "user", "content": step if k else f"{question} {step}"})
        conversation.append({"role": "assistant", "content": "+"})
        ids = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
        parts.append((ids, [len(ids) - 3]))
    return parts


def two_labels(architecture):
    def make(folder):
        config = tiny.config(architecture, vocab_size=300, max_position_embeddings=512, n_positions=512, num_labels=2)
        model = AutoModelForTokenClassification.from_config(config)
        return model, lambda out: out.logits[0, :, 1] - out.logits[0, :, 0]

    return make


def hidden_layer(folder):
    model = Qwen2ForProcessRewardModel(tiny.config("qwen2", vocab_size=300, max_position_embeddings=512))
    return model, None


def language_model(architecture, **changes):
    def make(folder):
        config = tiny.config(architecture, vocab_size=300, max_position_embeddings=512, **changes)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        good, bad = tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]
        return AutoModelForCausalLM.from_config(config), lambda out: out.logits[0, :, good] - out.logits[0, :, bad]

    return make


KINDS = {
    "trl": (two_labels("llama"), byte_tokenizer(bos=True), trl),
    "trl, gpt2": (two_labels("gpt2"), byte_tokenizer(), trl),
    "qwen2.5-math-prm": (hidden_layer, byte_tokenizer(CHATML), qwen),
    "math-shepherd": (language_model("mistral", sliding_window=None), sentencepiece_like_tokenizer(), shepherd),
    "math-shepherd, tied": (language_model("qwen3", tie_word_embeddings=True), byte_tokenizer(), shepherd),
    "rlhflow": (language_model("llama"), byte_tokenizer(LLAMA, bos=True), rlhflow),
}


@pytest.fixture
def saved_prm(tmp_path):
    """Makes a model of a kind; returns its folder and what it gives for a solution, in float64 by its own forward."""

    def make(kind: str):
        torch.manual_seed(0)
        create, tokenizer, definition = KINDS[kind]
        folder = tmp_path / "prm"
        tokenizer.save_pretrained(folder)
        model, difference = create(folder)
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms are not what they begin with either
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
        model.double().eval()
        if difference is None:

            def q_of(ids):
                logits = model.score(model.model(input_ids=ids, use_cache=False).last_hidden_state)
                return logits[0, :, 1] - logits[0, :, 0]
        else:

            def q_of(ids):
                return difference(model(input_ids=ids, use_cache=False))

        def expected(question, steps):
            with torch.no_grad():
                parts = definition(tokenizer, question, steps)
                return torch.cat([q_of(torch.tensor([ids]))[rows] for ids, rows in parts])

        return folder, expected

    return make


@pytest.mark.parametrize(
    ("kind", "prefix_tree"), [("trl", True), *((kind, False) for kind in KINDS), ("rlhflow", True)]
)
def test_scores_are_those_of_the_model_itself(saved_prm, kind, prefix_tree):
    folder, expected = saved_prm(kind)
    prm = ThirdPartyPRM(kind.partition(",")[0])
    scorer = Scorer.from_pretrained(folder, device="cpu", dtype="float32", prefix_tree=prefix_tree, third_party=prm)
    for got, (question, steps) in zip(scorer.score(SOLUTIONS), SOLUTIONS, strict=True):
        q = expected(question, steps)
        assert len(got) == len(steps)
        assert q.abs().min() > 1e-3
        assert tiny.relative_error(torch.tensor(got, dtype=torch.float64), q) <= 1e-5


def test_one_command_and_no_code_of_the_model(saved_prm, tmp_path, capsys):
    """`evaluate --preset` on a folder whose config.json names a file of code, as the published one does."""
    folder, expected = saved_prm("qwen2.5-math-prm")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForProcessRewardModel"]
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Qwen2ForProcessRewardModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": q, "completions": steps, "labels": [1] * len(steps)} for q, steps in SOLUTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--model", str(folder), "--data", str(data), "--out", str(tmp_path / "out.jsonl")]
    assert main(["score", *files, "--no-progress"]) == 1
    assert "not a checkpoint of pqm-fast" in (said := capsys.readouterr().err)
    assert "--preset qwen2.5-math-prm" in said
    assert main(["score", *files, "--no-progress", "--preset", "qwen2.5-math-prm"]) == 0
    for line, (question, steps) in zip((tmp_path / "out.jsonl").read_text().splitlines(), SOLUTIONS, strict=True):
        assert json.loads(line)["scores"] == pytest.approx(expected(question, steps).tolist(), rel=1e-4)
    assert not (tmp_path / "ran").exists()

    model = StepQModel.from_pretrained(str(folder))
    assert model.load_report.notes == [
        "its own head, which does not give one value, is left out: the Q-value head is new"
    ]
    assert model.head.weight.shape == (1, 32)
    weights = Qwen2ForProcessRewardModel.from_pretrained(folder)
    assert torch.equal(model.backbone.layers[1].mlp.up_proj.weight, weights.model.layers[1].mlp.up_proj.weight)


def test_training_starts_from_the_backbone_of_a_token_classifier(saved_prm):
    folder, _ = saved_prm("trl")
    model = StepQModel.from_pretrained(str(folder))
    assert model.load_report.notes == [
        "its own head, which does not give one value, is left out: the Q-value head is new"
    ]
    assert model.head.weight.shape == (1, 32)
    assert model.head.weight.isfinite().all()
    whole = AutoModelForTokenClassification.from_pretrained(folder)
    assert torch.equal(model.backbone.layers[0].mlp.up_proj.weight, whole.model.layers[0].mlp.up_proj.weight)


def test_options_say_what_no_preset_does(saved_prm):
    """Another separator than TRL's default, other tokens than + and -, a template of one's own."""
    folder, _ = saved_prm("trl")
    tokenizer = load_tokenizer(str(folder))
    prm = ThirdPartyPRM("trl", step_token="\n\n", step_format="* {step}")
    encoder = Scorer.from_pretrained(folder, third_party=prm).encoder
    [encoded] = encoder([Record("r", "q", ["a", "b"])])
    assert tokenizer.decode(encoded.input_ids) == "<bos>q* a\n\n* b\n\n"
    assert encoded.step_tokens.tolist() == [6, 11]

    folder, _ = saved_prm("math-shepherd, tied")
    prm = ThirdPartyPRM(
        head="tokens", prompt_format="Q: {prompt}\n", step_token="<extra_0>", good_token="a", bad_token="b"
    )
    scorer = Scorer.from_pretrained(folder, third_party=prm, device="cpu", dtype="float32")
    lm = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode("Q: q\nx<extra_0>y<extra_0>")])
    with torch.no_grad():
        logits = lm(ids).logits[0, ids[0] == tokenizer.encode("<extra_0>")[0]]
    expected = logits[:, tokenizer.encode("a")[0]] - logits[:, tokenizer.encode("b")[0]]
    assert scorer.score([("q", ["x", "y"])])[0] == pytest.approx(expected.tolist(), abs=1e-5)


WRONG = {
    "trl": [
        (ThirdPartyPRM("qwen2.5-math-prm"), "no head of two labels with a hidden layer"),
        (ThirdPartyPRM("math-shepherd"), "no head of a language model"),
        (ThirdPartyPRM("rlhflow"), "the tokenizer has no chat template"),
        (ThirdPartyPRM("trl", head="tokens", good_token="good"), "'good' is not one token"),
    ],
    "math-shepherd": [
        (ThirdPartyPRM("trl"), "no head of two labels"),
        (ThirdPartyPRM("math-shepherd", step_token="ab"), "'ab' is not one token"),
    ],
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_not_as_the_preset_says(saved_prm, kind):
    folder, _ = saved_prm(kind)
    for options, message in WRONG[kind]:
        with pytest.raises(PQMError) as error:
            Scorer.from_pretrained(folder, third_party=options)
        assert message in str(error.value), options


def test_a_chat_template_that_rejects_the_turns():
    tokenizer = byte_tokenizer("{{ raise_exception('one turn at most') }}")
    with pytest.raises(PQMError, match=r"prompt-format turns: the chat template rejects the messages: .*one turn"):
        ThirdPartyPRM("rlhflow").resolve().layout_for(tokenizer)
    with pytest.raises(PQMError, match=r"prompt_format 'chat': the chat template rejects the messages: .*one turn"):
        Template(prompt_format="chat").resolve(tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_token": "<extra_0>"}, "set --preset, or at least --head and --prompt-format"),
        ({"preset": "trl", "prompt_format": "no place"}, "{prompt} must occur in it exactly once"),
        (
            {"preset": "foo"},
            "preset: 'foo' was given; choose one of none, trl, qwen2.5-math-prm, math-shepherd, rlhflow",
        ),
        ({"preset": None}, "preset: None was given"),
        ({"preset": "trl", "head": "foo"}, "head: 'foo' was given; choose one of linear, mlp, tokens"),
        ({"preset": "trl", "head": ["mlp"]}, "head: ['mlp'] was given"),
        ({"preset": "trl", "prompt_format": 3}, "prompt_format: 3 (int) was given; pass a text"),
        ({"preset": "trl", "step_separator": b"x"}, "step_separator: b'x' (bytes) was given"),
        ({"preset": "rlhflow", "good_token": "y", "bad_token": "y"}, "good_token and bad_token are both 'y'"),
        ({"preset": "math-shepherd", "good_token": "-"}, "good_token and bad_token are both '-'"),
    ],
)
def test_what_no_model_could_be_read_by(options, message):
    with pytest.raises(PQMError) as error:
        ThirdPartyPRM(**options)
    assert message in str(error.value)


def test_heads_that_are_no_difference_of_two(tmp_path):
    torch.manual_seed(0)
    byte_tokenizer().save_pretrained(tmp_path / "three")
    config = tiny.config("llama", vocab_size=300, num_labels=3)
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / "three")
    with pytest.raises(PQMError, match="no head of two labels: 2 tensors are missing or of another shape"):
        Scorer.from_pretrained(tmp_path / "three", third_party=ThirdPartyPRM("trl"))
    byte_tokenizer().save_pretrained(tmp_path / "capped")
    config = tiny.config("gemma2", vocab_size=300, final_logit_softcapping=5.0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "capped")
    with pytest.raises(PQMError, match="gemma2 changes its logits"):
        Scorer.from_pretrained(tmp_path / "capped", third_party=ThirdPartyPRM("math-shepherd"))


def test_step_ends_that_cannot_be_read():
    tokenizer = byte_tokenizer()
    encoder = TextEncoder(tokenizer, TextLayout("{prompt}", step_token="<extra_0>"), 12)
    records = [Record("a", "q", ["x", "y"]), Record("b", "q<extra_0>", ["x"]), Record("c", "q" * 12, ["x", "y"])]
    short, marked, long = encoder([*records])
    assert (short.step_tokens.tolist(), short.steps_cut) == ([2, 4], 0)
    assert isinstance(marked, RecordError)
    assert "'<extra_0>' occurs in its question or steps" in str(marked)
    assert isinstance(long, OverLong)
    assert (long.steps, "(14 tokens) exceed the limit of 12 tokens" in str(long)) == (2, True)
    [cut] = TextEncoder(tokenizer, encoder.layout, 4)([records[0]])
    assert (cut.input_ids.tolist(), cut.steps_cut) == (short.input_ids[:3].tolist(), 1)
    tokenizer.add_tokens("z\n")
    [merged] = TextEncoder(tokenizer, TextLayout("{prompt}", step_separator="\n"), 12)([Record("d", "q", ["xz", "y"])])
    assert "a token reaches from the end of a step into what follows it" in str(merged)


def test_tokens_of_a_real_tokenizer(shared_tokenizer):
    """Texts whose tokens depend on what stands around them: each preset writes and cuts as its definition does."""
    tokenizer = AutoTokenizer.from_pretrained(shared_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>", "ки", "<|eot_id|>"]})
    solutions = [*SOLUTIONS, ("  Спрос 你好\n", ["\nStep 1: 4.", "Step 2: = 5\n", "12345 …"])]
    definitions = {"trl": trl, "qwen2.5-math-prm": qwen, "math-shepherd": shepherd, "rlhflow": rlhflow}
    assert definitions.keys() == PRESETS.keys()
    for preset, definition in definitions.items():
        tokenizer.chat_template = LLAMA.replace("{{ bos_token }}", "") if preset == "rlhflow" else CHATML
        encoder = TextEncoder(tokenizer, PRESETS[preset].layout_for(tokenizer), 1000)
        for question, steps in solutions:
            if preset == "rlhflow":  # chat templates trim
                question, steps = question.lstrip(), [step.strip() for step in steps]
            [encoded] = encoder([Record("r", question, steps)])
            parts = definition(tokenizer, question, steps)
            rows = [row for _, part in parts for row in part]
            assert encoded.step_tokens.tolist() == rows
            assert encoded.input_ids.tolist() == parts[-1][0][: rows[-1] + 1]
