"""Steps and their tokens, against a definition in bytes: each token is a run of bytes of the text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pqm_fast.data.records import EMPTY_STEP
from pqm_fast.data.step_text import split_steps, step_spans
from pqm_fast.errors import PQMError
from pqm_fast.rewards import step_rewards, step_tokens, token_rewards

SEPARATOR = "\n\n"
PARTS = [
    "7 * 2 = 14",
    " pens",
    "中文",
    "🎉",
    "é",
    "\n",
    "\n\n",
    "\n\n\n",
    " ",
    "  ",
    ").",
    "Step",
    "<|im_end|>",
    "👩‍🔬",
    "\t",
]


def byte_of_character() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes: the printable ones for themselves, then from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def expected_spans(pieces: list[bytes], separator: str) -> list[tuple[int, int]]:
    """By the byte that each token holds."""
    token_of = [number for number, piece in enumerate(pieces) for _ in piece]
    text = b"".join(pieces).decode()
    spans, behind = [], 0
    for start, end in step_spans(text, separator):
        first, last = token_of[len(text[:start].encode())], token_of[len(text[:end].encode()) - 1]
        spans.append((min(max(first, behind), last), last))
        behind = last + 1
    return spans


@pytest.fixture(scope="module")
def qwen(shared_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(shared_tokenizer)
    byte, special = byte_of_character(), set(tokenizer.all_special_ids)

    def piece(token: int) -> bytes:  # special tokens are skipped
        return b"" if token in special else bytes(byte[c] for c in tokenizer.convert_ids_to_tokens(token))

    return tokenizer, piece


def test_real_tokenizer(qwen):
    tokenizer, piece = qwen
    rng = np.random.default_rng(0)

    for _ in range(150):
        # encoded part by part, so that the ids are seldom those of the whole text
        parts = rng.choice(PARTS, rng.integers(1, 25))
        ids = [token for part in parts for token in tokenizer(str(part))["input_ids"]]
        pieces = [piece(token) for token in ids]
        steps, spans = step_tokens(ids, tokenizer, SEPARATOR)
        text = b"".join(pieces).decode()
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert steps == split_steps(text, SEPARATOR)
        assert spans == (expected_spans(pieces, SEPARATOR) or [(0, len(ids) - 1)])

    assert any(len(tokenizer(part)["input_ids"]) > 1 for part in ("🎉", "👩‍🔬"))  # characters are split across tokens


def test_a_token_that_ends_a_step_and_holds_the_separator(qwen):
    tokenizer, _ = qwen
    ids = tokenizer("so 14.\n\nThen 7).\n\n")["input_ids"]
    steps, spans = step_tokens(ids, tokenizer, SEPARATOR)
    assert steps == ["so 14.", "Then 7)."]
    assert [tokenizer.decode(ids[last]) for _, last in spans] == [".\n\n", ").\n\n"]
    assert [tokenizer.decode(ids[first]) for first, _ in spans] == ["so", "Then"]


def test_long_completions_are_the_same_as_in_pieces(qwen):
    """More tokens than the first guess, and thousands of them."""
    tokenizer, piece = qwen
    text = SEPARATOR.join(f"{'long 🎉 ' * n} and {n}" for n in (0, 1, 300, 2, 500))
    ids = tokenizer(text)["input_ids"]
    assert step_tokens(ids, tokenizer, SEPARATOR)[1] == expected_spans([piece(token) for token in ids], SEPARATOR)


@pytest.fixture(scope="module")
def made_up():
    """Pieces as SentencePiece has them: no space at the beginning of a text, bytes of characters as tokens of their
    own, and one token that holds whole steps."""
    words = ["▁so", "▁7", "s", "o", "<0xC3>", "<0xA9>", "\n\n", ".\n\n", ".\n\n▁a\n\nb", "▁", "<eos>", "<pad>", "<unk>"]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    return tokenizer, {word: i for i, word in enumerate(words)}


@pytest.mark.parametrize(
    ("tokens", "text", "steps", "spans"),
    [
        (["▁so", "▁7", "\n\n", "▁so", "<eos>"], "so 7\n\n so", ["so 7", "so"], [(0, 1), (3, 3)]),
        # what is behind the first step would begin with a space that this tokenizer leaves out
        (["▁so", ".\n\n", "▁7", "\n\n", "o"], "so.\n\n 7\n\no", ["so.", "7", "o"], [(0, 1), (2, 2), (4, 4)]),
        (["s", "<0xC3>", "<0xA9>", "\n\n", "o"], "sé\n\no", ["sé", "o"], [(0, 2), (4, 4)]),
        (["\n\n", "▁", "<0xC3>", "<0xA9>"], "\n\n é", ["é"], [(2, 3)]),
        # one token ends the first step, holds the second and begins the third
        (["▁7", ".\n\n▁a\n\nb", "o"], "7.\n\n a\n\nbo", ["7.", "a", "bo"], [(0, 1), (1, 1), (2, 2)]),
        # and holds the third as a whole
        (
            ["▁7", ".\n\n▁a\n\nb", "\n\n", "o"],
            "7.\n\n a\n\nb\n\no",
            ["7.", "a", "b", "o"],
            [(0, 1), (1, 1), (1, 1), (3, 3)],
        ),
        (["\n\n", "▁", "<eos>"], "\n\n ", [EMPTY_STEP], [(0, 2)]),
        (["<eos>"], "", [EMPTY_STEP], [(0, 0)]),
    ],
)
def test_made_up_tokenizer(made_up, tokens, text, steps, spans):
    tokenizer, number = made_up
    ids = [number[token] for token in tokens]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert step_tokens(ids, tokenizer, SEPARATOR) == (steps, spans)
    rewards = step_rewards([1.5 - i for i in range(len(steps))])
    by_token = token_rewards(rewards, spans, len(ids))
    assert len(by_token) == len(ids)
    assert sum(by_token) == pytest.approx(sum(rewards), abs=1e-12)
    assert {number for number, reward in enumerate(by_token) if reward} <= {last for _, last in spans}


def test_token_rewards():
    assert token_rewards([2.0, -0.5], [(0, 1), (3, 3)], 5) == [0, 2.0, 0, -0.5, 0]
    assert token_rewards([2.0, -0.5], [(0, 1), (1, 1)], 2) == [0, 1.5]  # two steps end with one token


def test_bad_input(made_up):
    with pytest.raises(PQMError, match="a completion without tokens"):
        step_tokens([], made_up[0], SEPARATOR)
    with pytest.raises(PQMError, match="1 step rewards but 0 spans"):
        token_rewards([1.0], [], 3)
    with pytest.raises(PQMError, match="ends at token 3 of a completion with 3 tokens"):
        token_rewards([1.0], [(0, 3)], 3)
