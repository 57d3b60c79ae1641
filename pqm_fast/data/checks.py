"""Checks that raw records of every format must pass, and how their error messages quote what is wrong."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pqm_fast.data.records import Record


class FormatError(ValueError):
    """A raw record that cannot be used. The message is "what is wrong; what to do"; `kind` groups such errors."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def at(location: str) -> Iterator[None]:
    """Puts `location` before the message of a `FormatError` that is raised inside."""
    try:
        yield
    except FormatError as error:
        raise FormatError(error.kind, f"{location}: {error}") from None


def show(value: Any) -> str:
    """`value` as a message quotes it, shortened to 60 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer with thousands of digits
        text = f"a long {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


# JSON can write half a surrogate pair as an escape, but no tokenizer accepts it and no file can hold it
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_LEVELS = 100  # far beyond any format; JSON readers and writers recurse once per level
_TYPE_NAMES: dict[type, str] = {str: "text", list: "a list", dict: "an object", int: "a whole number"}


def typed(value: Any, name: str, kind: type) -> Any:
    """`value`, checked to be of type `kind`; messages call it `name`. 2.0 counts as the whole number 2, because tables
    with missing numbers store whole numbers like that. Raises `FormatError`."""
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    actual, expected = f"{show(value)} ({type(value).__name__})", _TYPE_NAMES[kind]
    if kind is str and isinstance(value, list) and all(isinstance(v, dict) and "role" in v for v in value):
        actual, expected = "a list of chat messages", "text: give the content of the message alone"
    raise FormatError("wrong type", f"{name} is {actual}; it must be {expected}")


def check_values(raw: dict[str, Any]) -> None:
    """Raises `FormatError`, naming the field, for a text anywhere in a raw record that UTF-8 cannot encode, and for
    nesting deeper than 100 levels."""
    for name, value in raw.items():
        level: list[Any] = [name, value]
        broken: str | None = None
        for _ in range(_MOST_LEVELS):
            inner: list[Any] = []
            for item in level:
                if isinstance(item, str):
                    if not item.isascii() and _LONE_SURROGATE.search(item):
                        broken = broken or item
                elif isinstance(item, dict):
                    inner += (*item, *item.values())
                elif isinstance(item, list):
                    inner += item
            if not inner:
                break
            level = inner
        else:
            raise FormatError("nested too deeply", f"{name!a} has more than {_MOST_LEVELS} levels; flatten it")
        if broken is not None:
            location = ", ".join(_path({name: value}, broken))
            raise FormatError("broken text", f"{location} holds half a surrogate pair; repair its encoding")


def _path(value: Any, sought: str) -> list[str]:
    """The field names and entry numbers that lead to a text inside objects and lists; [] if it is not there."""
    items = value.items() if isinstance(value, dict) else enumerate(value, 1) if isinstance(value, list) else ()
    for key, inner in items:
        if key is sought:
            return [f"the field name {key!a}"]
        name = f"entry {key}" if isinstance(key, int) else key
        if inner is sought:
            return [name]
        if inner_path := _path(inner, sought):
            return [name, *inner_path]
    return []


def field(raw: dict[str, Any], name: str, kind: type, owner: str = "") -> Any:
    """Field `name` of `raw`, checked to be there (null counts as absent) and of type `kind`. Raises `FormatError`.

    Messages put `owner`, such as "turn 1: ", before the name.
    """
    if raw.get(name) is None:
        field_names = ", ".join(raw) or "none"
        raise FormatError("missing field", f"field {owner}{name} is missing (fields found: {field_names}); add it")
    return typed(raw[name], f"{owner}{name}", kind)


def rest(raw: dict[str, Any], *used: str) -> dict[str, Any]:
    """The fields of `raw` for `Record.extra`: all except its id and those that are `used`."""
    return {key: value for key, value in raw.items() if key not in used and key != "id"}


def _label(value: Any, name: str) -> float | None:
    if value is None:
        return None
    # NaN fails the comparison too
    if not isinstance(value, (bool, int, float)) or not 0 <= value <= 1:
        raise FormatError(
            "bad label",
            f"{name} is {show(value)}; give true, false, a number from 0 to 1, or null for no label",
        )
    return float(value)


def record(id: str, prompt: str, steps: Any, labels: Any, extra: dict[str, Any]) -> Record:
    """The record, after the checks that are the same for all formats. Raises `FormatError`."""
    if not prompt.strip():
        raise FormatError("empty question", "the question is empty; give its text or remove the record")
    if not steps:
        raise FormatError("no steps", "there are no steps; give at least one or remove the record")
    for number, step in enumerate(steps, 1):
        if not typed(step, f"step {number}", str).strip():
            raise FormatError("empty step", f"step {number} of {len(steps)} is empty; remove it and its label")
    if labels is not None:
        if len(typed(labels, "labels", list)) != len(steps):
            raise FormatError(
                "labels and steps of different length",
                f"{len(labels)} labels for {len(steps)} steps; give one label per step (null: no label)",
            )
        labels = [_label(value, f"label {number}") for number, value in enumerate(labels, 1)]
        if all(label is None for label in labels):
            labels = None
    return Record(id, prompt, steps, labels, extra)


def explicit_id(raw: dict[str, Any], name: str = "id") -> str | None:
    """The id in field `name` as text, None if there is none. Raises `FormatError`."""
    value = raw.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise FormatError("wrong type", f"{name} is {show(value)}; it must be text or a whole number")
    if isinstance(value, str) and _LONE_SURROGATE.search(value):
        raise FormatError("broken text", f"{name} is {value!a}, with half a surrogate pair; repair its encoding")
    return str(value)
