"""Tiny models and tokenizers of real architectures, made on the spot."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

SHAPE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
ARCHITECTURES = {
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "llama": {"num_key_value_heads": 4},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    # no *ForTokenClassification of its own in transformers; alternates sliding and full attention
    "gemma3_text": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    # scores capped by a tanh
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 5, "attn_logit_softcapping": 2.0},
    "gpt2": {},
}


def config(architecture: str, **changes):
    shape = SHAPE | {"max_position_embeddings": 128}
    if architecture == "gpt2":
        shape = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "resid_pdrop": 0.0}
        shape |= {"embd_pdrop": 0.0, "attn_pdrop": 0.0}
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return AutoConfig.for_model(architecture, **(shape | special | ARCHITECTURES[architecture] | changes))


def tokenizer(size: int = 97) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... split at white space, one id each; unknown words are <unk>."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=128
    )


def model_folder(path: Path, architecture: str = "llama", *, tokens: int = 90, **changes) -> Path:
    """A folder with config.json and a tokenizer, no weights. There is room for new tokens from `tokens` to 97."""
    path.mkdir(parents=True, exist_ok=True)
    config(architecture, **changes).save_pretrained(path)
    tokenizer(tokens).save_pretrained(path)
    return path


def text(rng, words: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(3, 90, words))


# losses of the differences of scores: the gradient of the bias of the head is 0, and what is left of it is rounding
WITHOUT_LEVEL = {"sibling", "listwise-softmin", "listwise-mean"}


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm().clamp(min=1e-30))


def write_data(path: Path, count=120, questions=30, seed=0) -> str:
    """Labelled records of a few steps each, as JSON lines."""
    rng = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            steps = int(rng.integers(1, 7))
            row = {
                "id": f"r{i}",
                "prompt": f"w3 w{4 + i % questions}",
                "completions": [text(rng, int(rng.integers(1, 6))) for _ in range(steps)],
                "labels": [bool(b) for b in rng.integers(0, 2, steps)],
            }
            file.write(json.dumps(row) + "\n")
    return str(path)
