"""Where the steps of a solution are in its text."""

from pqm_fast.data.records import EMPTY_STEP


def step_spans(text: str, separator: str) -> list[tuple[int, int]]:
    """[start, end) of each step in `text`: the pieces between separators, without surrounding white space. Blank pieces
    are dropped, so a blank text has no span."""
    spans, begin = [], 0
    for piece in text.split(separator):
        if words := piece.strip():
            start = begin + piece.index(words)
            spans.append((start, start + len(words)))
        begin += len(piece) + len(separator)
    return spans


def split_steps(text: str, separator: str) -> list[str]:
    """The texts at `step_spans`. A blank text has one step, `EMPTY_STEP`."""
    return [text[start:end] for start, end in step_spans(text, separator)] or [EMPTY_STEP]
