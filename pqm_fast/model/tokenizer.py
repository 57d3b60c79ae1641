"""Loads the tokenizer of a model, and notes if it differs from the one in tokenizer.json."""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from pqm_fast.common.names import check_model_name, loading_error
from pqm_fast.errors import PQMError
from pqm_fast.model.loading import quiet_transformers, short_reason

PROBE = "Step 1: Let x = 7 - 2.\nSo x^2 = 25, and a: 7 -2 =5."


def load_tokenizer(path: str, notes: list[str] | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model folder or hub id. Raises PQMError if there is none.

    For some architectures (such as qwen2) transformers uses its own tokenizer class, whatever tokenizer.json contains.
    If that gives other tokens, a note is appended to `notes`.
    """
    check_model_name(path)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path)
            tokenizer([PROBE], add_special_tokens=False, verbose=False)  # some faults in its files show only here
    except Exception as error:  # the errors that transformers raises have no common class
        if Path(path).is_dir():
            raise _no_tokenizer(path, short_reason(error)) from error
        raise loading_error(path, "tokenizer", short_reason(error)) from error
    # for an architecture with its own tokenizer class, transformers makes an empty tokenizer if there are no files
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise _no_tokenizer(path, "its vocabulary is empty")
    file = Path(path) / "tokenizer.json"
    if notes is not None and file.is_file():
        file_ids = Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids
        if file_ids != tokenizer.encode(PROBE, add_special_tokens=False):
            notes.append(
                f"tokenizer: transformers replaces the one in {file} with its {type(tokenizer).__name__}, which gives "
                "other tokens"
            )
    return tokenizer


def _no_tokenizer(path: str, reason: str) -> PQMError:
    return PQMError(
        f"{path}: no tokenizer could be loaded; copy the tokenizer's files into the model folder ({reason})"
    )
