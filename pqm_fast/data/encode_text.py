"""Turns text into tokens as third-party PRMs were trained on it. Most tokenise a solution as one text, and read each
step at its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pqm_fast.data.encode import LAST, Encoded, bos_ids, check_placeholders, cut, join, piece_ids, single_id
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextLayout:
    """The text of a solution: prompt_format, then for each step step_format, step_token and step_separator.

    A step is read at its step token (`last`: there is none, and a step is read at its last token). `in_pieces`:
    question, steps and step tokens are tokenised separately, not the whole text at once.
    """

    prompt_format: str
    step_format: str = "{step}"
    step_token: str = LAST
    step_separator: str = ""
    in_pieces: bool = False

    def __post_init__(self) -> None:
        check_placeholders(self.prompt_format, self.step_format, ("chat", "turns"))
        if not self.step_token:
            raise PQMError("step_token: empty; name a token such as '<extra_0>', or 'last' to use none")
        if self.in_pieces and self.step_separator:
            raise PQMError("step_separator: this preset has none; set the step token to the text that follows a step")


class TextEncoder:
    """Encodes records with one layout. As in `Encoder`, a record that is too long is cut at the end of a step."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", layout: TextLayout, max_length: int):
        self.tokenizer, self.layout, self.max_length = tokenizer, layout, max_length
        self.step_id: int | None = None
        self.marker: list[int] = []
        if layout.in_pieces:
            # TRL puts BOS before every text, whether or not the tokenizer does
            self.bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            if layout.step_token != LAST:
                self.marker = tokenizer.encode(layout.step_token, add_special_tokens=False)
        else:
            self.bos = bos_ids(tokenizer, layout.prompt_format)
            if layout.step_token != LAST:
                self.step_id = single_id(tokenizer, layout.step_token)
                if self.step_id is None:
                    raise PQMError(
                        f"step token {layout.step_token!r} is not one token of the tokenizer; set it to the model's"
                    )
            if not tokenizer.is_fast:
                raise PQMError("the tokenizer does not give the positions of its tokens in the text; use a fast one")

    def __call__(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        """For a record that cannot be encoded, the result is an error that names it."""
        if not records:
            return []
        return self._in_pieces(records) if self.layout.in_pieces else self._at_once(records)

    def _in_pieces(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        pieces = [self._pieces(record) for record in records]
        ids = piece_ids(self.tokenizer, (text for prompt, steps in pieces for text in (prompt, *steps)))
        return [
            join(record, [*self.bos, *ids[prompt]], [ids[step] for step in steps], self.marker, self.max_length)
            for record, (prompt, steps) in zip(records, pieces, strict=True)
        ]

    def _at_once(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        texts, ends = [], []
        for record in records:
            text, steps = self._pieces(record)
            step_ends = []
            for number, step in enumerate(steps):
                text += step if number == 0 else self.layout.step_separator + step
                step_ends.append(len(text))
            texts.append(text)
            ends.append(step_ends)
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            self._read(record, ids, np.array(spans).reshape(-1, 2), step_ends)
            for record, ids, spans, step_ends in zip(
                records, encoded["input_ids"], encoded["offset_mapping"], ends, strict=True
            )
        ]

    def _pieces(self, record: Record) -> tuple[str, list[str]]:
        """The text of the question, and the text of each step up to the place where it is read."""
        marker = "" if self.layout.in_pieces or self.layout.step_token == LAST else self.layout.step_token
        # split, not replaced: a question or step may itself contain a placeholder
        text_before, text_after = self.layout.step_format.split("{step}")
        steps = [text_before + step + text_after + marker for step in record.steps]
        return self.layout.prompt_format.replace("{prompt}", record.prompt), steps

    def _read(self, record: Record, ids: list[int], spans: np.ndarray, ends: list[int]) -> Encoded | RecordError:
        """`spans` [L, 2]: start and end of each token in the text; `ends` [K]: the place where each step is read."""
        # a step is read at the last token that begins before its end
        step_tokens = [int(token) - 1 for token in np.searchsorted(spans[:, 0], ends, side="left")]
        if any(spans[token, 1] > end for token, end in zip(step_tokens, ends, strict=True)):
            return RecordError(
                f"record {record.id}: a token reaches from the end of a step into what follows it; choose another "
                "--step-token or --step-separator",
                kind="step end inside a token",
            )
        if self.step_id is not None and (
            ids.count(self.step_id) != len(step_tokens) or any(ids[token] != self.step_id for token in step_tokens)
        ):
            return RecordError(
                f"record {record.id}: the step token {self.layout.step_token!r} occurs in its question or steps, or "
                "becomes another token there; reword it or leave the record out",
                kind="step token in the text",
            )
        return cut(record, [*self.bos, *ids], [len(self.bos) + token for token in step_tokens], self.max_length)
