"""Tells words in answers from products of letters, in which `no` would equal `on`."""

import re

from pqm_fast.evaluate.answers.expression import FUNCTION_WORDS

_SMALL_WORDS = {
    *("am", "an", "as", "at", "be", "by", "do", "go", "he", "if", "in", "is", "it", "me", "my", "no", "of", "on", "or"),
    *("so", "to", "up", "us", "we"),
}


def is_product(word: str) -> bool:
    """Whether letters side by side are factors, as in `ab`, and not a word."""
    if not word.islower():
        return False
    return (len(word) == 2 and word not in _SMALL_WORDS) or (len(word) == 3 and set(word) in ({*"abc"}, {*"xyz"}))


def has_words(text: str) -> bool:
    """Whether the text contains prose."""
    without_commands = re.sub(r"\\[a-zA-Z]+", " ", text)
    return any(
        not is_product(word) and word not in FUNCTION_WORDS
        for word in re.findall(r"[a-zA-Z]+", re.sub(r"\bdegrees?\b", " ", without_commands))
        if len(word) > 2
        or not (len(word) == 1 or word.islower())
        or (word in _SMALL_WORDS and not re.search(rf"[\d)}}]{word}|{word}[\d^(]", without_commands))
    )


def is_mathematics(text: str) -> bool:
    """Whether math-verify may be able to read it: LaTeX, without words or numbers side by side."""
    if not text.isprintable() or "\\" not in text or re.search(r"\d(?: \d| ?_)", text):
        return False
    plain = re.sub(r"\\(?:begin|end)\s*\{[a-z]*\}|\\[a-zA-Z]+", " ", text)
    return "text" not in text and not has_words(plain)


def compact(text: str) -> str:
    """The text without differences in white space and in the case of words; 3 4 is not 34, and A is not a."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"[^\W\d_]{2,}", lambda word: word[0].casefold(), re.sub(r"(?<=\d)_\{(\w+)\}", r"_\1", text))
    return re.sub(r"(?<![\w])\s+|\s+(?![\w])", "", text).strip()
