"""Which tokens of a completion each step has, and a reward for each token."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from pqm_fast.data.records import EMPTY_STEP
from pqm_fast.data.step_text import step_spans
from pqm_fast.errors import PQMError

Span = tuple[int, int]
"""The first and the last token of a step."""


def step_tokens(ids: Sequence[int], tokenizer: Any, separator: str) -> tuple[list[str], list[Span]]:
    """The steps of a completion, and the first and the last token of each.

    The last token is the one that completes the step's last character. A token that ends a step and holds a separator,
    or the beginning of the next step, belongs to the step that it ends. A token that holds several whole steps is the
    last token of each of them. Separators, white space and special tokens between steps belong to no step.

    Only the decoded text counts, so ids need not be those that the tokenizer would give to the text. Beginnings of
    `ids` are decoded and compared with the whole, so a character may be split across tokens.

    Args:
        ids: the tokens of one completion, without prompt and padding.
        tokenizer: a transformers tokenizer; special tokens are skipped when it decodes.
        separator: between steps, such as a blank line.

    Returns:
        The texts that `split_steps` gives, and a span for each. The single step of a blank completion has all tokens.

    Raises:
        PQMError: `ids` are empty.
    """
    ids = list(ids)
    if not ids:
        raise PQMError("a completion without tokens has no token to put a reward on; leave it out")
    text = tokenizer.decode(ids, skip_special_tokens=True)
    steps, spans = [], []
    rest = _Rest(ids, text, tokenizer)
    behind = 0  # the token behind the last step
    for start, end in step_spans(text, separator):
        last = rest.tokens_for(end) - 1
        first = rest.tokens_for(start)
        if first and rest.covered(first) > start:  # its last token also holds the beginning of the step
            first -= 1
        while first < last and not rest.decode(ids[first : first + 1]):  # a special token
            first += 1
        steps.append(text[start:end])
        spans.append((min(max(first, behind), last), last))
        behind = last + 1
        rest = rest.behind(behind)
    return (steps, spans) if spans else ([EMPTY_STEP], [(0, len(ids) - 1)])


def token_rewards(rewards: Sequence[float], spans: Sequence[Span], length: int) -> list[float]:
    """[length] the reward of each step at its last token, and 0 elsewhere; their sum is that of `rewards`.

    Raises:
        PQMError: not one span per reward, or a span beyond `length`.
    """
    if len(rewards) != len(spans):
        raise PQMError(f"{len(rewards)} step rewards but {len(spans)} spans of tokens; pass one for each")
    by_token = [0.0] * length
    for reward, (_, last) in zip(rewards, spans, strict=True):
        if not 0 <= last < length:
            raise PQMError(f"a step ends at token {last} of a completion with {length} tokens")
        by_token[last] += reward
    return by_token


class _Rest:
    """The tokens from `token` on, which decode to the text from `character` on. All counts are from the beginning of
    the completion."""

    def __init__(self, ids: list[int], text: str, tokenizer: Any, token: int = 0, character: int = 0):
        self.ids, self.text, self.tokenizer, self.token, self.character = ids, text, tokenizer, token, character

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def covered(self, tokens: int) -> int:
        """Characters of the text that the first `tokens` tokens complete."""
        beginning = self.decode(self.ids[: tokens - self.token])
        if self.text.startswith(beginning):
            return self.character + len(beginning)
        # it ends within a character, or in what a later token changes
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(self.text, beginning, strict=False))
        return self.character + sum(1 for _ in equal)

    def tokens_for(self, characters: int) -> int:
        """The fewest tokens that complete the first `characters` characters."""
        if characters <= self.character:
            return self.token
        few, ahead = self.token, 64  # most steps end soon
        while few + ahead < self.token + len(self.ids) and self.covered(few + ahead) < characters:
            few, ahead = few + ahead, 2 * ahead
        return few + bisect_left(range(few, min(few + ahead, self.token + len(self.ids))), characters, key=self.covered)

    def behind(self, token: int) -> "_Rest":
        """What is behind the tokens before `token`, if it decodes to the rest of the text by itself. That saves time:
        some tokenizers, such as those that leave out a space at the beginning, have to decode everything."""
        ids, character = self.ids[token - self.token :], self.covered(token)
        text = self.text[character - self.character :]
        return _Rest(ids, text, self.tokenizer, token, character) if self.decode(ids) == text else self
