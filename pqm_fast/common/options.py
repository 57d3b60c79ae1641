"""Values of options that several commands have."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pqm_kernels.losses import LOSSES

DType = Literal["auto", "float32", "bfloat16"]
Layers = Literal["auto", "eager", "compile", "liger"]
Attention = Literal["auto", "flash", "varlen", "sdpa"]
if TYPE_CHECKING:  # a type checker cannot read the choices from the table
    Loss = str
else:
    Loss = Literal[tuple(LOSSES)]

_ESCAPES = {"\\": "\\", "n": "\n", "t": "\t", "r": "\r"}  # the backslash first: `escape` adds more
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.|$)", re.DOTALL)


def unescape(text: str) -> str:
    r"""`text` with the line breaks, tabs, backslashes and characters that \n, \r, \t, \\ and \u4e00 stand for.

    Raises ValueError for any other backslash.
    """

    def meant(match: re.Match[str]) -> str:
        code = match[1]
        if code in _ESCAPES:
            return _ESCAPES[code]
        if len(code) == 5 and not 0xD800 <= int(code[1:], 16) < 0xE000:
            return chr(int(code[1:], 16))
        raise ValueError(
            rf"{text!r}: {match[0]} is no escape; write \n (line break), \t (tab), \r, \u and four hexadecimal digits "
            r"(a character), or \\ for a backslash"
        )

    return _ESCAPE.sub(meant, text)


def escape(text: str) -> str:
    """What is typed for `text`: `unescape` gives it back."""
    for code, character in _ESCAPES.items():
        text = text.replace(character, f"\\{code}")
    return text


def _typed() -> Any:
    """For tyro, without which there is no command line."""
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


# Typed with escapes on the command line, for no shell writes a line break in simple quotes; shown so in its help.
Text = Annotated[str, _typed()]
