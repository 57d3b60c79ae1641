"""Hook of mkdocs: the options on the pages of reference/command-line/, from the parser that prints `--help`."""

import logging
import re
import warnings
from typing import Any
from unittest import mock

from pqm_fast import cli

PAGE = re.compile(r"reference/command-line/(\w+)\.md")
MARK = "<!-- the options: docs_site/command_line.py -->"
DEFAULT = re.compile(r"\s*\((?:default: (.*)|(required))\)\Z", re.DOTALL)
TEXT_OR_CODE = re.compile(r"(`[^`]*`)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*\w")
log = logging.getLogger("mkdocs.hooks.command_line")


def on_files(files: Any, config: Any) -> Any:
    """Warns of a command without a page."""
    for command in cli.COMMANDS:
        if files.get_file_from_path(f"reference/command-line/{command}.md") is None:
            log.warning("docs/reference/command-line/%s.md: missing; every command has a page", command)
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Puts the options of a command in place of the mark on its page."""
    match = PAGE.fullmatch(page.file.src_uri)
    if match is None or match[1] == "index":
        return markdown
    if MARK not in markdown:
        log.warning("docs/%s: has no line %s", page.file.src_uri, MARK)
    return markdown.replace(MARK, options_page(match[1]))


def options_page(command: str) -> str:
    """Every option of a command in Markdown, with a heading for each group and an anchor for each option."""
    groups = {group.title: group._group_actions for group in parser(command)._action_groups}
    groups = {title: [a for a in actions if a.dest != "help"] for title, actions in groups.items()}
    names = {name for actions in groups.values() for action in actions for name in action.option_strings}
    parts = []
    for title, actions in groups.items():
        if actions:
            parts.append(f"## {title.capitalize()}")
            parts += [_option(action, names) for action in actions]
    return "\n\n".join(parts)


def parser(command: str) -> Any:
    """The parser that `pqm-fast COMMAND --help` prints."""
    import tyro

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there is no other way yet to get at a parser of tyro
        return tyro.extras.get_parser(options_of(command), config=(tyro.conf.OmitArgPrefixes,))


def options_of(command: str) -> type:
    """The dataclass of a command's options: what the command passes to `parse`."""

    class Found(Exception):
        pass

    with mock.patch.object(cli, "parse", side_effect=Found) as parse:
        try:
            cli.COMMANDS[command]([])
        except Found:
            return parse.call_args.args[0]
    raise LookupError(f"{command} does not parse options")


def _option(action: Any, names: set[str]) -> str:
    """One option: its name as a heading, what it takes, its default, its help."""
    name, *others = action.option_strings
    text = action.help.replace("%%", "%")
    match = DEFAULT.search(text)
    facts = [f"`{name}`, `{others[0]}`"] if others else [_values(action.metavar)]
    if match is not None:
        text = text[: match.start()]
        if match[2]:
            facts.append("**required**")
        elif match[1]:
            facts.append(f"default `{match[1]}`")
    anchor = name.removeprefix("--")
    return f"### `{name}` {{ #{anchor} }}\n\n{' · '.join(facts)}\n{{ .option }}\n\n{_linked(text, names - {name})}"


def _values(metavar: str) -> str:
    """`{a,b}`, `[STR [STR ...]]` and `{None}|INT` of argparse in words."""
    repeated = re.fullmatch(r"\[?(.*) \[(?:\1 )?\.\.\.\]\]?", metavar)
    if repeated is not None:
        return f"{_values(repeated[1])}, one or more"
    kinds = []
    for kind in re.findall(r"\{[^}]*\}|[^|{}]+", metavar):
        choices = kind[1:-1].split(",") if kind.startswith("{") else [kind]
        kinds += [f"`{choice}`" for choice in choices if choice != "None"]
    return ", ".join(kinds[:-1]) + f" or {kinds[-1]}" if len(kinds) > 1 else kinds[0]


def _linked(text: str, names: set[str]) -> str:
    """A help text in Markdown: names of options are links, and other signs mean themselves."""

    def link(match: re.Match[str]) -> str:
        return f"[`{match[0]}`](#{match[0].removeprefix('--')})" if match[0] in names else f"`{match[0]}`"

    pieces = TEXT_OR_CODE.split(text)
    plain = [re.sub(r"[<*_\[\]{}]", lambda sign: f"\\{sign[0]}", piece) for piece in pieces[::2]]
    pieces[::2] = [OPTION.sub(link, piece.replace("\n", " ")) for piece in plain]
    return "".join(pieces)
