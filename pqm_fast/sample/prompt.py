"""How a question and the steps so far are written as a prompt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pqm_fast.data.chat import chat_text
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_prompt(prompt_format: str, question: str, steps: Sequence[str], separator: str) -> str:
    """The text that the policy continues. Each step so far ends with the separator, so that a new step follows."""
    return prompt_format.replace("{prompt}", question) + "".join(step + separator for step in steps)


def chat_format(tokenizer: "PreTrainedTokenizerBase", system: str) -> str:
    """The tokenizer's chat template as text with {prompt} in it, up to the start of the answer.

    The text is tokenised like any other, so it leaves out a BOS token that the tokenizer adds by itself.
    Raises PQMError for a tokenizer without a template, and for a template that rejects these messages.
    """
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "{prompt}"})
    text = chat_text(tokenizer, messages, "prompt-format chat", answer_follows=True)
    if text.count("{prompt}") != 1:
        raise PQMError("prompt-format chat: the chat template does not repeat the question once; pass a text instead")
    bos = tokenizer.bos_token
    if bos and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(str(bos))
    return text
