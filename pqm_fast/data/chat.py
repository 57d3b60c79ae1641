"""Writes chat messages as text, with a tokenizer's chat template."""

from typing import TYPE_CHECKING

from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_text(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], option: str, *, answer_follows: bool
) -> str:
    """The messages as one text; with `answer_follows`, up to the place where the next answer begins.

    Raises PQMError, which names `option`, for a tokenizer without a template and for a template that rejects these
    messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise PQMError(f"{option}: the tokenizer has no chat template; pass the text instead")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_follows))
    except Exception as error:  # a template can raise anything
        raise PQMError(f"{option}: the chat template rejects the messages: {error}") from error
