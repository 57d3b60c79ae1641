"""Small decoders with a tokenizer for the embedded world, in the shapes of three families; no weights."""

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
    """Writes config.json and a tokenizer into `folder`, which is made. PQMError: an unknown family.

    llama: 4 heads, 164k parameters, the model of `pqm-fast demo`. qwen2 and mistral: 2 heads of keys and values for 4
    of queries; qwen2 with biases. AutoTokenizer gives any folder of type qwen2 Qwen's own pre-tokenizer, so signs and
    digits are tokens of their own there: about twice the tokens of the other two.
    """
    if family not in FAMILIES:
        raise PQMError(f"model {family}: the arithmetic world has {', '.join(FAMILIES)}")
    tokenizer = make_qwen2_tokenizer(CONTEXT) if family == "qwen2" else make_tokenizer(CONTEXT)
    tokenizer.save_pretrained(folder)
    model_config(tokenizer, family).save_pretrained(folder)


def model_config(tokenizer: PreTrainedTokenizerBase, family: str = "llama") -> Any:
    """The config of a decoder of three layers, 64 wide."""
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if family == "llama" else 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": WIDTH**-0.5,  # 0.02, the usual value, learns clearly slower at this width
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "dtype": "float32",
    }
    if family == "qwen2":
        return Qwen2Config(**shape)
    return MistralConfig(**shape, sliding_window=None) if family == "mistral" else LlamaConfig(**shape)
