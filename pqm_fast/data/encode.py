"""Turns text into tokens: the template that training and scoring share, and the token at which each Q-value is read.

A solution becomes   prompt piece, step piece 1 [step token], step piece 2 [step token], ...
Pieces are tokenised separately, so that the tokens of a step do not depend on the text around it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from pqm_fast.common.options import Text
from pqm_fast.data.chat import chat_text
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LAST = "last"  # in place of a step token: Q-values are read at the last token of each step


@dataclass(frozen=True)
class Template:
    """How a question and its steps are written. It is stored in config.json of a checkpoint, under `pqm_fast`."""

    prompt_format: Text = "{prompt}\n"
    """Text of the question, with {prompt} in its place. `chat`: the tokenizer's chat template."""
    step_format: Text = "{step}\n"
    """Text of one step, with {step} in its place."""
    step_token: Text = "<|step|>"
    """Token after each step, at which its Q-value is read; it is added if it is new. `last`: no token is added, and the
    Q-value is read at the step's last token."""

    def __post_init__(self):
        check_placeholders(self.prompt_format, self.step_format, ("chat",))
        if not self.step_token:
            raise PQMError("step token: empty; name a token such as '<|step|>', or 'last' to use none")

    def resolve(self, tokenizer: "PreTrainedTokenizerBase") -> "Template":
        """The template with the tokenizer's chat template written out, so that it can be stored as text."""
        if self.prompt_format != "chat":
            return self
        messages = [{"role": "user", "content": "{prompt}"}]
        text = chat_text(tokenizer, messages, "prompt_format 'chat'", answer_follows=True)
        return Template(text, self.step_format, self.step_token)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_placeholders(prompt_format: str, step_format: str, words: tuple[str, ...]) -> None:
    """Raises `PQMError` for a format without its placeholder. `prompt_format` may be one of `words` instead."""
    if prompt_format.count("{prompt}") != 1 and prompt_format not in words:
        raise PQMError(f"prompt_format {prompt_format!r}: {{prompt}} must occur in it exactly once")
    if step_format.count("{step}") != 1:
        raise PQMError(f"step_format {step_format!r}: {{step}} must occur in it exactly once")


def ensure_step_token(tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
    """Makes sure that the tokenizer has `token` as one id. Returns whether it was added; its embedding is then new."""
    if token == LAST or single_id(tokenizer, token) is not None:
        return False
    from transformers import AddedToken

    # special and not normalised: it is split off before anything else happens to the text
    added = AddedToken(token, special=True, normalized=False, lstrip=False, rstrip=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [added]}, replace_extra_special_tokens=False)
    if single_id(tokenizer, token) is None:
        raise PQMError(f"step token {token!r} is not one token even after adding it; choose another")
    return True


def single_id(tokenizer: "PreTrainedTokenizerBase", text: str) -> int | None:
    """The id of `text` if it is one token of the tokenizer, otherwise None."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def bos_ids(tokenizer: "PreTrainedTokenizerBase", prompt_format: str) -> list[int]:
    """The ids that the tokenizer puts before a text: a BOS token or nothing. Nothing if the format begins with BOS."""
    bos = tokenizer.bos_token_id
    starts_with_bos = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    in_format = tokenizer.bos_token and prompt_format.startswith(tokenizer.bos_token)
    return [bos] if starts_with_bos and not in_format else []


class OverLong(RecordError):
    """The first step of a record does not fit, so that no step can be scored.

    `needed`: tokens up to the end of that step. `steps`: how many steps the record has.
    """

    def __init__(self, record: Record, needed: int, limit: int):
        self.steps = len(record.steps)
        super().__init__(
            f"record {record.id}: the question and its first step ({needed} tokens) exceed the limit of {limit} "
            "tokens; raise --max-length if the model's context allows, or leave it out with --skip-bad",
            kind="question longer than the context",
        )


@dataclass(slots=True)
class Encoded:
    """One trajectory as L tokens, with the K steps that fit."""

    input_ids: np.ndarray  # [L] int32
    step_tokens: np.ndarray  # [K] int32, the token at which the Q-value of each step is read
    steps_cut: int  # how many more steps did not fit


def piece_ids(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> dict[str, list[int]]:
    """text -> its ids, each text tokenised separately and without special tokens."""
    # solutions of one question share its text, and often steps: tokenise each text once
    if not (unique := list(dict.fromkeys(texts))):
        return {}
    return dict(zip(unique, tokenizer(unique, add_special_tokens=False, verbose=False)["input_ids"], strict=True))


def join(record: Record, start: list[int], steps: list[list[int]], marker: list[int], limit: int) -> Encoded | OverLong:
    """Joins `start` and the steps, each followed by `marker`, and calls `cut`. A step is read where its marker ends."""
    ids, step_tokens = [*start], []
    for step in steps:
        ids += [*step, *marker]
        step_tokens.append(len(ids) - 1)
    return cut(record, ids, step_tokens, limit)


def cut(record: Record, ids: list[int], step_tokens: list[int], limit: int) -> Encoded | OverLong:
    """The tokens up to the last step that ends within `limit` tokens; `step_tokens` are in increasing order."""
    fitting_steps = [token for token in step_tokens if token < limit]
    if not fitting_steps:
        return OverLong(record, step_tokens[0] + 1, limit)
    return Encoded(
        np.array(ids[: fitting_steps[-1] + 1], dtype=np.int32),
        np.array(fitting_steps, dtype=np.int32),
        steps_cut=len(step_tokens) - len(fitting_steps),
    )


class Encoder:
    """Encodes records with one template. A record that is too long is cut at the end of a step.

    `max_length` is the longest trajectory in tokens. The tokenizer must already have the step token
    (`ensure_step_token`).
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: Template, max_length: int):
        if template.prompt_format == "chat":
            raise ValueError("resolve the template with the tokenizer first")
        self.tokenizer, self.template, self.max_length = tokenizer, template, max_length
        self.step_id: int | None = None
        if template.step_token != LAST:
            self.step_id = single_id(tokenizer, template.step_token)
            if self.step_id is None:
                raise PQMError(f"step token {template.step_token!r} is not one token of this tokenizer; choose another")
        self.bos = bos_ids(tokenizer, template.prompt_format)

    def __call__(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        """Encodes many records at once (fast tokenizers use every core). For a record that cannot be encoded, the
        result is an error that names it, for the caller to raise or count."""
        prompts = [self.template.prompt_format.replace("{prompt}", r.prompt) for r in records]
        steps = [[self.template.step_format.replace("{step}", s) for s in r.steps] for r in records]
        pieces = piece_ids(self.tokenizer, [*prompts, *chain.from_iterable(steps)])
        return [
            self._join(record, pieces[prompt], [pieces[s] for s in record_steps])
            for record, prompt, record_steps in zip(records, prompts, steps, strict=True)
        ]

    def _join(self, record: Record, prompt: list[int], steps: list[list[int]]) -> Encoded | RecordError:
        ids = [*self.bos, *prompt]
        marker = [] if self.step_id is None else [self.step_id]
        if marker and (self.step_id in prompt or any(self.step_id in s for s in steps)):
            text = "its question" if self.step_id in prompt else "one of its steps"
            return RecordError(
                f"record {record.id}: the step token {self.template.step_token!r} occurs in {text}; "
                "choose another with --step-token",
                kind="step token in the text",
            )
        if not all(steps):
            return RecordError(
                f"record {record.id}: step {steps.index([]) + 1} of {len(steps)} has no tokens in this tokenizer; "
                "reword it or leave the record out",
                kind="step without tokens",
            )
        return join(record, ids, steps, marker, self.max_length)
