"""Types of options that several commands share."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pqm_kernels.losses import LOSSES

from pqm_fast.errors import PQMError

DType = Literal["auto", "float32", "bfloat16"]
Layers = Literal["auto", "eager", "compile", "liger"]
Attention = Literal["auto", "flash", "varlen", "sdpa"]
_COMPARE = ("none", *(name for name, loss in LOSSES.items() if loss.unit == "question"))
if TYPE_CHECKING:  # a type checker cannot read the choices from the table
    Loss = str
    Compare = str
else:
    Loss = Literal[tuple(LOSSES)]
    Compare = Literal[_COMPARE]

_ESCAPES = {"\\": "\\", "n": "\n", "t": "\t", "r": "\r"}  # the backslash is first because `escape` adds more
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.|$)", re.DOTALL)


def check_noise(noise: tuple[float, ...] | str) -> None:
    """Raises PQMError unless `noise` is "auto", or two rates of wrong labels of at least 0 with a sum below 1."""
    if not isinstance(noise, str) and not (len(noise) == 2 and min(noise) >= 0 and sum(noise) < 1):
        raise PQMError(f"noise: {noise} was given; it must be auto, or two rates of at least 0 with a sum below 1")


def flat(options: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Options without groups: `template.step_token` for `step_token` in the group `template`."""
    values: dict[str, Any] = {}
    for name, value in options.items():
        values |= flat(value, f"{group}{name}.") if isinstance(value, dict) else {f"{group}{name}": value}
    return values


def unescape(text: str) -> str:
    r"""Replaces \n, \r, \t, \\ and \u4e00 in `text` by the line break, tab, backslash or character they stand for.

    Raises ValueError for any other backslash.
    """

    def replacement(match: re.Match[str]) -> str:
        code = match[1]
        if code in _ESCAPES:
            return _ESCAPES[code]
        if len(code) == 5 and not 0xD800 <= int(code[1:], 16) < 0xE000:
            return chr(int(code[1:], 16))
        raise ValueError(
            rf"{text!r}: {match[0]} is not an escape; write \n (line break), \t (tab), \r, \u and four hexadecimal "
            r"digits (a character), or \\ for a backslash"
        )

    return _ESCAPE.sub(replacement, text)


def escape(text: str) -> str:
    """The inverse of `unescape`: what a user types for `text`."""
    for code, character in _ESCAPES.items():
        text = text.replace(character, f"\\{code}")
    return text


def _typed() -> Any:
    """How tyro reads and shows a `Text`. The command line needs tyro; other uses do not."""
    try:
        from tyro.constructors import PrimitiveConstructorSpec
    except ModuleNotFoundError:
        return "TEXT"
    return PrimitiveConstructorSpec[str](
        nargs=1,
        metavar="TEXT",
        instance_from_str=lambda arguments: unescape(arguments[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda text: [escape(text)],
    )


# Typed with escapes on the command line, and shown so in its help: shells have no line break in plain quotes.
Text = Annotated[str, _typed()]
