"""Takes a question and its solution out of one text, which RL trainers send with the chat template around both."""

from typing import TYPE_CHECKING, NamedTuple

from pqm_fast.data.chat import chat_text
from pqm_fast.errors import PQMError
from pqm_fast.serve.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Conversation(NamedTuple):
    """The text `before` a question and `between` it and its solution, and the texts that may stand at the end. A
    tokenizer may have put `bos` at the beginning."""

    bos: str
    before: str
    between: str
    endings: tuple[str, ...]

    @classmethod
    def of(cls, written: str, tokenizer: "PreTrainedTokenizerBase", step_token: str) -> "Conversation":
        """From a text with {prompt} and {solution} in it, or from the chat template of the tokenizer for `chat`.

        Raises PQMError for a tokenizer whose template is missing, or does not write a question as it is.
        """
        if written == "chat":
            question = {"role": "user", "content": "{prompt}"}
            # not with the solution inside: templates rewrite answers of reasoning models
            chat = chat_text(tokenizer, [question], "conversation chat", answer_follows=True)
            before, found, between = chat.partition("{prompt}")
            if not (found and between) or "{prompt}" in between:
                raise PQMError(
                    "conversation chat: the chat template does not write the question once, with text behind it"
                )
            after = ""
        else:
            before, rest = written.split("{prompt}")
            between, after = rest.split("{solution}")
        bos = str(tokenizer.bos_token) if tokenizer.bos_token else ""
        special = {str(token) for token in tokenizer.all_special_tokens} - {step_token}
        return cls(bos, before.removeprefix(bos), between, tuple(filter(None, {after.strip(), *special})))

    def split(self, text: str) -> tuple[str, str]:
        """(question, solution). Raises Problem for a text that is not written so."""
        question, found, solution = self._question(text).partition(self.between)
        if not found:
            raise _unknown(f"{_begin(text)} has no {self.between!r} behind the question")
        if self.between in solution:
            raise _unknown(f"{_begin(text)} has {self.between!r} twice: more than one question and its solution")
        return question, self._solution(solution)

    def split_at(self, text: str, prompt: str) -> tuple[str, str]:
        """(question, solution) of a text that begins with `prompt`. Raises Problem for one that is not written so."""
        if not text.startswith(prompt):
            raise _unknown(f"{_begin(text)} does not begin with its prompt {_begin(prompt)}")
        question = self._question(prompt)
        if not question.endswith(self.between):
            raise _unknown(f"the prompt {_begin(prompt)} does not end with {self.between!r}")
        return question.removesuffix(self.between), self._solution(text[len(prompt) :])

    def _question(self, text: str) -> str:
        text = text.removeprefix(self.bos)
        if not text.startswith(self.before):
            raise _unknown(f"{_begin(text)} does not begin with {self.before!r}")
        return text.removeprefix(self.before)

    def _solution(self, text: str) -> str:
        shorter = text.rstrip()
        while ending := next((ending for ending in self.endings if shorter.endswith(ending)), ""):
            shorter = shorter.removesuffix(ending).rstrip()
        return shorter


def _unknown(what: str) -> Problem:
    advice = "start the server with --conversation as your trainer writes a question and its solution"
    return Problem(400, "unknown_conversation", f"{what}; {advice}")


def _begin(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
