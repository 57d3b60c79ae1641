"""Hook of mkdocs: a link from a page to a file outside docs/ leads to that file on the site.

The repository has no public address, so the site carries what its pages link to: code as a page with its text
(not in the navigation, not in the search), Markdown as a page, a folder as a list of its files, stored results as
they are. A link to a file that does not exist stays as it is, and mkdocs warns of it.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
"""The path in [text](path#anchor), if it is not an address."""
COPIED = {".json", ".png"}
FENCE = "~" * 12


def on_files(files: Any, config: Any) -> Any:
    """Adds every file outside docs/ that a page, or a file so added, links to."""
    from mkdocs.structure.files import File, InclusionLevel

    unread = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    added = set()
    while unread:
        origin, text = unread.pop()
        for path in outside(origin, text):
            if path in added:
                continue
            added.add(path)
            if Path(path).suffix in COPIED:
                files.append(File.generated(config, uri(path), abs_src_path=str(ROOT / path)))
                continue
            page = page_text(path)
            files.append(File.generated(config, uri(path), content=page, inclusion=InclusionLevel.NOT_IN_NAV))
            if has_links(path):
                unread.append((path, page))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turns the links to files outside docs/ into links to their pages."""
    origin = origin_of(page.file.src_uri)
    if not has_links(origin):
        return markdown
    here = os.path.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        path = resolve(origin, match[0])
        is_in_docs = origin.startswith("docs/") and path.startswith("docs/")
        if is_in_docs or path.startswith("..") or not (ROOT / path).exists():
            return match[0]  # mkdocs finds a page, or warns
        return os.path.relpath(uri(path), here or ".")

    return LINK.sub(link, markdown)


def outside(origin: str, text: str) -> Iterator[str]:
    """The existing files and folders outside docs/ to which the text of the file `origin` links."""
    for match in LINK.finditer(text):
        path = resolve(origin, match[0])
        if not path.startswith(("docs/", "..")) and (ROOT / path).exists():
            yield path


def has_links(path: str) -> bool:
    """Whether it is Markdown, or a folder, whose page is a list of links. Code may only look like a link."""
    return path.endswith(".md") or (ROOT / path).is_dir()


def resolve(origin: str, link: str) -> str:
    """The path from the root of the repository to what a link in the file or folder `origin` means."""
    folder = origin if (ROOT / origin).is_dir() else os.path.dirname(origin)
    return os.path.normpath(os.path.join(folder, link))


def uri(path: str) -> str:
    """Where the site has a file or folder of the repository, before mkdocs turns .md into .html."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}" if Path(path).suffix in COPIED | {".md"} else f"source/{path}.md"


def origin_of(src_uri: str) -> str:
    """The inverse of `uri`."""
    if not src_uri.startswith("source/"):
        return f"docs/{src_uri}"
    path = src_uri.removeprefix("source/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md").removesuffix("/index")


def page_text(path: str) -> str:
    """The page of a file or folder outside docs/, in Markdown."""
    file = ROOT / path
    if file.suffix == ".md":
        return file.read_text(encoding="utf-8")
    if file.is_dir():
        names = sorted(entry.name for entry in file.iterdir() if entry.is_file() and not entry.name.startswith("."))
        body = "\n".join(f"- [`{name}`]({name})" for name in names)
    else:
        body = f"{FENCE} {{.{file.suffix[1:] or 'text'} linenums=1}}\n{file.read_text(encoding='utf-8')}\n{FENCE}"
    return f"---\ntitle: {path}\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# `{path}`\n\n{body}\n"
