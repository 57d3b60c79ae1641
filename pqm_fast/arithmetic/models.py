"""Writes model folders for the arithmetic world: small decoders of three families with a tokenizer, no weights."""

from pathlib import Path
from typing import Any, Literal, get_args

from transformers import LlamaConfig, MistralConfig, PreTrainedTokenizerBase, Qwen2Config

from pqm_fast.arithmetic.tokenizer import make_qwen2_tokenizer, make_tokenizer
from pqm_fast.errors import PQMError

Family = Literal["llama", "qwen2", "mistral"]
FAMILIES: tuple[Family, ...] = get_args(Family)
WIDTH = 64
CONTEXT = 256


def write_model(folder: Path, family: str = "llama") -> None:
    """Writes config.json and a tokenizer into `folder`, which it creates. Raises PQMError for an unknown family.

    llama: 4 heads, 164k parameters; the model of `pqm-fast demo`. qwen2 and mistral: 4 query heads share 2 key-value
    heads; qwen2 has biases. AutoTokenizer loads any folder of type qwen2 with Qwen's pre-tokenizer, which splits
    off signs and digits, so qwen2 has about twice as many tokens as the other two.
    """
    if family not in FAMILIES:
        raise PQMError(f"model {family}: the arithmetic world has {', '.join(FAMILIES)}")
    tokenizer = make_qwen2_tokenizer(CONTEXT) if family == "qwen2" else make_tokenizer(CONTEXT)
    tokenizer.save_pretrained(folder)
    model_config(tokenizer, family).save_pretrained(folder)


def model_config(tokenizer: PreTrainedTokenizerBase, family: str = "llama") -> Any:
    """The config of a decoder with three layers of width 64."""
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if family == "llama" else 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": WIDTH**-0.5,  # with 0.02, the usual value, this width learns clearly more slowly
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "dtype": "float32",
    }
    if family == "qwen2":
        return Qwen2Config(**shape)
    return MistralConfig(**shape, sliding_window=None) if family == "mistral" else LlamaConfig(**shape)
