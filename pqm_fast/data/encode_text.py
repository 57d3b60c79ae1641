"""Text to tokens as other PRMs were trained on it: mostly one text, tokenised at once, each step read at its end."""

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
    """prompt_format, then for each step: step_format, step_token (where it is read; `last`: nothing), step_separator.

    `in_pieces`: question, step and step token are tokenised one by one, not the whole text at once.
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
            raise PQMError("step_separator: this preset has none; give what follows a step as the step token")


class TextEncoder:
    """Records to tokens under a layout, as `Encoder`: over-long records are cut at a step."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", layout: TextLayout, max_length: int):
        self.tokenizer, self.layout, self.max_length = tokenizer, layout, max_length
        self.step_id: int | None = None
        self.marker: list[int] = []
        if layout.in_pieces:
            # TRL puts it before every text, whether the tokenizer does or not
            self.bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            if layout.step_token != LAST:
                self.marker = tokenizer.encode(layout.step_token, add_special_tokens=False)
        else:
            self.bos = bos_ids(tokenizer, layout.prompt_format)
            if layout.step_token != LAST:
                self.step_id = single_id(tokenizer, layout.step_token)
                if self.step_id is None:
                    raise PQMError(
                        f"step token {layout.step_token!r} is not one token of the tokenizer; give the model's own"
                    )
            if not tokenizer.is_fast:
                raise PQMError("the tokenizer does not tell where its tokens stand in the text: a fast one is needed")

    def __call__(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        """A record that cannot be encoded gives its error in its place."""
        if not records:
            return []
        return self._in_pieces(records) if self.layout.in_pieces else self._at_once(records)

    def _in_pieces(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        written = [self._pieces(record) for record in records]
        ids = piece_ids(self.tokenizer, (text for prompt, steps in written for text in (prompt, *steps)))
        return [
            join(record, [*self.bos, *ids[prompt]], [ids[step] for step in steps], self.marker, self.max_length)
            for record, (prompt, steps) in zip(records, written, strict=True)
        ]

    def _at_once(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        texts, ends = [], []
        for record in records:
            text, steps = self._pieces(record)
            own = []
            for number, step in enumerate(steps):
                text += step if number == 0 else self.layout.step_separator + step
                own.append(len(text))
            texts.append(text)
            ends.append(own)
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            self._read(record, ids, np.array(spans).reshape(-1, 2), own)
            for record, ids, spans, own in zip(
                records, encoded["input_ids"], encoded["offset_mapping"], ends, strict=True
            )
        ]

    def _pieces(self, record: Record) -> tuple[str, list[str]]:
        """The question's text, and each step's up to where it is read."""
        marker = "" if self.layout.in_pieces or self.layout.step_token == LAST else self.layout.step_token
        # the placeholders of a format are not those of a text put into another
        before, after = self.layout.step_format.split("{step}")
        steps = [before + step + after + marker for step in record.steps]
        return self.layout.prompt_format.replace("{prompt}", record.prompt), steps

    def _read(self, record: Record, ids: list[int], spans: np.ndarray, ends: list[int]) -> Encoded | RecordError:
        """`spans` [L, 2]: where each token stands in the text; `ends`: where each step is read."""
        # the last token that begins before the end
        rows = [int(row) - 1 for row in np.searchsorted(spans[:, 0], ends, side="left")]
        if any(spans[row, 1] > end for row, end in zip(rows, ends, strict=True)):
            return RecordError(
                f"record {record.id}: a token reaches from the end of a step into what follows it; give another "
                "--step-token or --step-separator",
                kind="step end inside a token",
            )
        if self.step_id is not None and (
            ids.count(self.step_id) != len(rows) or any(ids[row] != self.step_id for row in rows)
        ):
            return RecordError(
                f"record {record.id}: the step token {self.layout.step_token!r} occurs in its question or steps, or "
                "becomes another token there; reword it or leave the record out",
                kind="step token in the text",
            )
        return cut(record, [*self.bos, *ids], [len(self.bos) + row for row in rows], self.max_length)
