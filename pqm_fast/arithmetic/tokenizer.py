"""Tokenizers of the embedded arithmetic world: an id for each word or, as in Qwen2, for each letter, sign and digit."""

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from pqm_fast.arithmetic.problems import LETTERS, OPERATIONS, WRITTEN_VALUES

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"


def words() -> list[str]:
    """Every word of the world: `7`, `a`, `-2` in a problem; `a:`, `7`, `-2`, `=5` in a step.

    The operation `-2` and the value `-2` are one word; the position shows which is meant.
    """
    all_words = [
        *(str(value) for value in WRITTEN_VALUES),
        *(f"={value}" for value in WRITTEN_VALUES),
        *(f"{operation:+d}" for operation in OPERATIONS),
        *LETTERS,
        *(f"{letter}:" for letter in LETTERS),
    ]
    return list(dict.fromkeys(all_words))


def make_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """A standard Hugging Face tokenizer: save it with `save_pretrained`, load it with `AutoTokenizer`."""
    vocabulary = {word: index for index, word in enumerate([PAD, EOS, UNK, *words()])}
    core = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, unk_token=UNK, model_max_length=max_length
    )


def make_qwen2_tokenizer(max_length: int) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen2's pre-tokenizer, which splits digits; a space joins the letter or sign after it."""
    space, line = "\u0120", "\u010a"  # how byte-level BPE writes " " and "\n"
    characters = sorted({*"".join(words()), space, line})
    # transformers expects pairs here, although its annotation says strings
    merges: Any = [(space, character) for character in (*"+-=", *LETTERS)]
    pieces = [PAD, EOS, UNK, *characters, *("".join(pair) for pair in merges)]
    return Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=max_length,
    )
