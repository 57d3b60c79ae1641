"""Parses a command's arguments into its dataclass of options. A --config file gives options that are not typed."""

import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pqm_fast.errors import PQMError


def parse(options: type, command: str, arguments: list[str], *, program: str = "pqm-fast") -> Any:
    """Returns an `options` dataclass, as `_parse` does. Of several processes that torchrun has started with the same
    arguments, only the first prints what is wrong with them."""
    if os.environ.get("RANK", "0") == "0":
        return _parse(options, command, arguments, program)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            return _parse(options, command, arguments, program)
        except PQMError:
            raise SystemExit(1) from None


def _parse(options: type, command: str, arguments: list[str], program: str) -> Any:
    """Returns an `options` dataclass. The command line overrides the --config file, which overrides the defaults.

    Args:
        options: a dataclass; the docstrings of its fields are the help.
        command: its name in the help, after that of the `program`.

    Raises:
        PQMError: the --config file cannot be read or holds no options, or the dataclass rejects a value.
        SystemExit: after --help (code 0) or a usage error (code 2), which is already printed.
    """
    import tyro

    file, typed = _split_config(gather(_attach_value(arguments, "--label-map"), "--field"))
    # the file's options come first: one parser checks all options, and the last of two values counts
    combined = [*_file_arguments(file, _text_options(options)), *typed] if file else typed
    try:
        return tyro.cli(options, prog=f"{program} {command}", args=combined, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as exit:
        if file and exit.code:
            print(
                f"{program}: error: the options come from {file} and the command line; correct them there",
                file=sys.stderr,
            )
        raise


def gather(arguments: list[str], option: str) -> list[str]:
    """Turns `--policy A --policy B` into `--policy A B`, at the end of the arguments.

    Prints a message and raises SystemExit with code 2 if the option has no value.
    """
    values: list[str] = []
    other_arguments: list[str] = []
    is_value = needs_value = False
    for argument in [*arguments, "--"]:  # the mark ends the last option too
        is_option = argument == option or argument.startswith(f"{option}=")
        if needs_value and (is_option or argument.startswith("-")):
            print(f"pqm-fast: {option}: has no value; pass one, or leave the option out", file=sys.stderr)
            raise SystemExit(2)
        needs_value = argument == option
        if is_option:
            is_value = True
            values += [argument.partition("=")[2]] if "=" in argument else []
        elif argument.startswith("-"):
            is_value = False
            other_arguments.append(argument)
        else:
            (values if is_value else other_arguments).append(argument)
    other_arguments.pop()  # the mark
    return [*other_arguments, option, *values] if values else other_arguments


def _attach_value(arguments: list[str], option: str) -> list[str]:
    """Turns `--label-map -1=0` into `--label-map=-1=0`: a value may begin with a dash, as options do."""
    remaining = iter(arguments)
    return [f"{argument}={next(remaining, '')}" if argument == option else argument for argument in remaining]


def _split_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(the --config file, the other arguments)."""
    files: list[str] = []
    other_arguments: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config" or argument.startswith("--config="):
            files.append(argument.partition("=")[2] or next(remaining, ""))
        else:
            other_arguments.append(argument)
    if len(files) > 1 or "" in files:
        raise PQMError("--config: name one file")
    return files[0] if files else None, other_arguments


def _text_options(options: type) -> set[str]:
    """Names of the options, also of nested dataclasses, that are typed with escapes on the command line (`Text`)."""
    from pqm_fast.common.options import Text

    names: set[str] = set()
    for name, hint in get_type_hints(options, include_extras=True).items():
        if is_dataclass(hint):
            names |= _text_options(hint)  # type: ignore[arg-type]
        elif Text in (hint, *get_args(hint)):
            names.add(name)
    return names


def _file_arguments(file: str, text_options: set[str]) -> list[str]:
    from pqm_fast.common.yaml_file import read_yaml

    values = read_yaml(Path(file))
    if not isinstance(values, dict):
        raise PQMError(f"{file}: holds no options; write one `name: value` a line")
    return list(_as_arguments(values, text_options))


def _as_arguments(values: dict[str, Any], text_options: set[str]) -> Iterator[str]:
    from pqm_fast.common.options import escape

    for name, value in values.items():
        option = "--" + str(name).replace("_", "-")
        # the parser undoes escapes, but a text in a file is literal
        literal = escape if option[2:].replace("-", "_") in text_options else str
        if isinstance(value, dict):  # a group of options, such as `template`
            yield from _as_arguments(value, text_options)
        elif isinstance(value, bool):
            yield option if value else f"--no-{option[2:]}"
        elif isinstance(value, list):
            yield option
            yield from (literal(str(item)) for item in value)
        else:
            yield f"{option}={literal(str(value))}"
