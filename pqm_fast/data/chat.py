"""What a tokenizer's chat template makes of messages."""

from typing import TYPE_CHECKING

from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_text(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], what: str, *, answer_follows: bool
) -> str:
    """The messages as one text, with `answer_follows` up to where the next answer begins; `what` is the option in
    messages of errors.

    Raises PQMError for a tokenizer without a template, and for a template that rejects these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise PQMError(f"{what}: the tokenizer has no chat template; give the text instead")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_follows))
    except Exception as error:  # a template raises whatever it likes
        raise PQMError(f"{what}: the chat template rejects the messages: {error}") from error
