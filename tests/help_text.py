"""The help of a command against the dataclass of its options."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import get_type_hints

DEVELOPERS = re.compile(
    r"Raises|Returns|Args:|Error\b|\[[A-Z](, ?\w+)*\]|\bself\b|\bdataclass|\bdict\b|\btuple\b|<factory>|\n *`[a-z_]+\("
)
"""Text that is meant for readers of the code, not for users."""


def documented_fields(kind: type) -> Iterator[tuple[str, str]]:
    """(name, docstring) of each field of a dataclass and of the dataclasses in it, read from the source."""
    below = {
        node.target.id: ast.literal_eval(following.value)
        for own in filter(dataclasses.is_dataclass, kind.__mro__)
        for node, following in pairwise(ast.parse(textwrap.dedent(inspect.getsource(own))).body[0].body)
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr)
    }
    types = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[field.name]):
            yield from documented_fields(types[field.name])
        else:
            yield field.name, below[field.name]  # a KeyError here: a field without a docstring


def assert_lists_every_option(text: str, program: str, kind: type) -> None:
    """The help `text` names every option of `kind`, with its docstring."""
    text = re.sub(r"[\s│╭╮╰╯─]", "", text)
    assert text.startswith(f"usage:{program.replace(' ', '')}")
    documented = list(documented_fields(kind))
    assert len(documented) >= 5
    for name, docstring in documented:
        assert f"--{name.replace('_', '-')}" in text
        assert re.sub(r"\s", "", docstring) in text, name
