"""Checks that the tokenizer's ids fit the model's embedding, and adds the step token to both."""

import torch
from transformers import PreTrainedTokenizerBase

from pqm_fast.data.encode import LAST, ensure_step_token, single_id
from pqm_fast.errors import PQMError
from pqm_fast.model.packed_decoder import PackedDecoder

# a grown embedding has a multiple of this many rows, which matrix products on a GPU prefer
EMBEDDING_MULTIPLE = 64


def check_vocabulary(decoder: PackedDecoder, tokenizer: PreTrainedTokenizerBase, new: str = LAST) -> None:
    """Raises PQMError for a tokenizer that is not the model's. The token `new` may lack an embedding."""
    rows = decoder.embedding.shape[0]
    highest = max((id for token, id in tokenizer.get_vocab().items() if token != new), default=0)
    if highest >= rows:
        raise PQMError(
            f"{decoder.config.name_or_path}: the tokenizer has ids up to {highest} but the embedding only {rows} "
            "rows: they do not belong together; copy the model's own tokenizer into its folder"
        )


def fit_vocabulary(decoder: PackedDecoder, tokenizer: PreTrainedTokenizerBase, step_token: str) -> str | None:
    """Makes the step token one id with an embedding. Returns a description of the change, or None without a change.

    A new token's embedding starts at the mean of the others. The embedding grows only if the model has no spare row
    for the token (Qwen2 has 290). Raises PQMError for a tokenizer that is not the model's.
    """
    check_vocabulary(decoder, tokenizer, step_token)
    if step_token == LAST:
        return None
    rows = decoder.embedding.shape[0]
    size_before = len(tokenizer)
    added = ensure_step_token(tokenizer, step_token)
    new_id = single_id(tokenizer, step_token)
    assert new_id is not None
    if not added and new_id < rows:
        return None
    if new_id >= rows:
        decoder.classifier.resize_token_embeddings(
            new_id + 1, pad_to_multiple_of=EMBEDDING_MULTIPLE, mean_resizing=False
        )
    with torch.no_grad():
        decoder.embedding[new_id] = decoder.embedding[: min(size_before, rows)].mean(0)
    grown = f", the embedding grew from {rows} to {decoder.embedding.shape[0]} rows" if new_id >= rows else ""
    return f"step token {step_token!r} was added as id {new_id}{grown}"
