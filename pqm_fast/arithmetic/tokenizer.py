"""The tokenizer of the embedded world: one id for each word that a problem or a solution can contain."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from pqm_fast.arithmetic.problems import LETTERS, OPERATIONS, WRITTEN_VALUES

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"


def words() -> list[str]:
    """Every word of the world: `7`, `a`, `-2` in a problem; `a:`, `7`, `-2`, `=5` in a step.

    `-2` the operation and `-2` the value are one word; where it stands tells which is meant.
    """
    every = [
        *(str(value) for value in WRITTEN_VALUES),
        *(f"={value}" for value in WRITTEN_VALUES),
        *(f"{operation:+d}" for operation in OPERATIONS),
        *LETTERS,
        *(f"{letter}:" for letter in LETTERS),
    ]
    return list(dict.fromkeys(every))


def make_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """An ordinary Hugging Face tokenizer: save it with `save_pretrained`, load it with `AutoTokenizer`."""
    vocabulary = {word: index for index, word in enumerate([PAD, EOS, UNK, *words()])}
    core = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, unk_token=UNK, model_max_length=max_length
    )
