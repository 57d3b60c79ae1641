"""Text to tokens: the one template that training and scoring share, and the token where each Q-value is read.

A solution becomes   prompt piece, step piece 1 [step token], step piece 2 [step token], ...
Pieces are tokenised separately, so that a step has the same tokens whatever stands around it.
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


LAST = "last"


@dataclass(frozen=True)
class Template:
    """How a question and its steps are written; stored in the checkpoint under `pqm_fast` in config.json."""

    prompt_format: Text = "{prompt}\n"
    """Text of the question; {prompt} stands for it. `chat`: the tokenizer's own chat template."""
    step_format: Text = "{step}\n"
    """Text of one step; {step} stands for it."""
    step_token: Text = "<|step|>"
    """Token put after each step, where its Q-value is read; added if new. `last`: read at the step's last token."""

    def __post_init__(self):
        check_placeholders(self.prompt_format, self.step_format, ("chat",))
        if not self.step_token:
            raise PQMError("step token: empty; name a token such as '<|step|>', or 'last' to use none")

    def resolve(self, tokenizer: "PreTrainedTokenizerBase") -> "Template":
        """The template with `chat` written out through the tokenizer, so that it can be stored and read as text."""
        if self.prompt_format != "chat":
            return self
        messages = [{"role": "user", "content": "{prompt}"}]
        text = chat_text(tokenizer, messages, "prompt_format 'chat'", answer_follows=True)
        return Template(text, self.step_format, self.step_token)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_placeholders(prompt_format: str, step_format: str, words: tuple[str, ...]) -> None:
    """Raises `PQMError` for a format without its placeholder; the question's may be one of `words` instead."""
    if prompt_format.count("{prompt}") != 1 and prompt_format not in words:
        raise PQMError(f"prompt_format {prompt_format!r}: {{prompt}} must stand in it exactly once")
    if step_format.count("{step}") != 1:
        raise PQMError(f"step_format {step_format!r}: {{step}} must stand in it exactly once")


def ensure_step_token(tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
    """Makes `token` one id of the tokenizer. Returns whether it had to be added (its embedding is then new)."""
    if token == LAST or single_id(tokenizer, token) is not None:
        return False
    from transformers import AddedToken

    # special and not normalised: it is cut out of the text before anything else happens to it
    added = AddedToken(token, special=True, normalized=False, lstrip=False, rstrip=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [added]}, replace_extra_special_tokens=False)
    if single_id(tokenizer, token) is None:
        raise PQMError(f"step token {token!r} is not one token even after adding it; choose another")
    return True


def single_id(tokenizer: "PreTrainedTokenizerBase", text: str) -> int | None:
    """The id of `text` if the tokenizer knows it as one token."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def bos_ids(tokenizer: "PreTrainedTokenizerBase", prompt_format: str) -> list[int]:
    """What the tokenizer puts before a text (a BOS token or nothing), unless the format writes it itself."""
    bos = tokenizer.bos_token_id
    starts_with_bos = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    written = tokenizer.bos_token and prompt_format.startswith(tokenizer.bos_token)
    return [bos] if starts_with_bos and not written else []


class OverLong(RecordError):
    """The first step of a record does not fit, so that none can be read. `needed`: tokens up to its end."""

    def __init__(self, record: Record, needed: int, limit: int):
        self.steps = len(record.steps)
        super().__init__(
            f"record {record.id}: the question and its first step ({needed} tokens) exceed the limit of {limit} "
            "tokens; raise --max-length if the model's context allows, or leave it out with --skip-bad",
            kind="question longer than the context",
        )


@dataclass(slots=True)
class Encoded:
    """One trajectory as tokens: `input_ids` [L] int32 and `step_tokens` [K] int32, the row of each step's Q-value.

    K is the number of steps kept; `steps_cut` further ones did not fit.
    """

    input_ids: np.ndarray
    step_tokens: np.ndarray
    steps_cut: int


def piece_ids(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> dict[str, list[int]]:
    """The ids of each text by itself, without special tokens; {} for none."""
    # solutions of one question share its text and often steps: tokenise each text once
    if not (unique := list(dict.fromkeys(texts))):
        return {}
    return dict(zip(unique, tokenizer(unique, add_special_tokens=False, verbose=False)["input_ids"], strict=True))


def join(record: Record, start: list[int], steps: list[list[int]], marker: list[int], limit: int) -> Encoded | OverLong:
    """`start`, then each step with `marker` behind it, read at the last of their tokens; cut as `cut` says."""
    ids, rows = [*start], []
    for step in steps:
        ids += [*step, *marker]
        rows.append(len(ids) - 1)
    return cut(record, ids, rows, limit)


def cut(record: Record, ids: list[int], rows: list[int], limit: int) -> Encoded | OverLong:
    """The tokens up to the last step that ends within `limit`; `rows`, in rising order, is where each is read."""
    kept = [row for row in rows if row < limit]
    if not kept:
        return OverLong(record, rows[0] + 1, limit)
    return Encoded(
        np.array(ids[: kept[-1] + 1], dtype=np.int32),
        np.array(kept, dtype=np.int32),
        steps_cut=len(rows) - len(kept),
    )


class Encoder:
    """Records to tokens under one template. Over-long records keep the question and are cut at a step boundary.

    `max_length` is the longest trajectory in tokens. The tokenizer must already hold the step token
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
        """Encodes many records at once (fast tokenizers use every core). A record that cannot be encoded gives its
        error in its place, naming the record, for the caller to raise or count."""
        prompts = [self.template.prompt_format.replace("{prompt}", r.prompt) for r in records]
        steps = [[self.template.step_format.replace("{step}", s) for s in r.steps] for r in records]
        pieces = piece_ids(self.tokenizer, [*prompts, *chain.from_iterable(steps)])
        return [
            self._join(record, pieces[prompt], [pieces[s] for s in own])
            for record, prompt, own in zip(records, prompts, steps, strict=True)
        ]

    def _join(self, record: Record, prompt: list[int], steps: list[list[int]]) -> Encoded | RecordError:
        ids = [*self.bos, *prompt]
        marker = [] if self.step_id is None else [self.step_id]
        if marker and (self.step_id in prompt or any(self.step_id in s for s in steps)):
            where = "its question" if self.step_id in prompt else "one of its steps"
            return RecordError(
                f"record {record.id}: the step token {self.template.step_token!r} occurs in {where}; "
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
