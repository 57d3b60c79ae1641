"""Hook of mkdocs: formulas as GitHub writes them, $`...`$ and ```math, become MathML when the site is built.

Browsers draw MathML themselves, so a page needs neither a script nor the network.
"""

import logging
from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element, tostring
from xml.sax.saxutils import unescape

from latex2mathml.converter import convert_to_element
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

INLINE = r"\$`([^`]+)`\$"
BEFORE_CODE = 200  # the priority of `code` is 190
BAR, LEFT_PARENTHESIS, MINUS, SUM, PRODUCT = "&#x0007C;", "&#x00028;", "&#x02212;", "&#x02211;", "&#x0220F;"
BELOW = {"msub": "munder", "msubsup": "munderover"}
log = logging.getLogger("mkdocs.hooks.mathml")  # with --strict a warning fails the build


def on_config(config: Any) -> Any:
    """Adds both notations to the Markdown of all pages, and of docstrings."""
    config.markdown_extensions.append(InlineMath())
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": block})
    return config


class InlineMath(Extension):
    """$`...`$ within a line."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Registers the notation."""
        md.inlinePatterns.register(_Inline(INLINE, md), "mathml", BEFORE_CODE)


class _Inline(InlineProcessor):
    def handleMatch(self, m: Any, data: str) -> tuple[str, int, int]:  # type: ignore[override]
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


def block(source: str, *_: Any, **__: Any) -> str:
    """The formula of a ```math block."""
    return f'<div class="math">{mathml(source.strip(), display="block")}</div>'


def mathml(formula: str, display: str = "inline") -> str:
    """A formula in LaTeX as a <math> element. Warns of what cannot be converted, and shows it as it is."""
    try:
        tree = convert_to_element(formula, display=display)
    except Exception as error:  # the package has no base class for its errors
        log.warning("formula %r: %s", formula, error or type(error).__name__)
        return formula
    _set_as_tex_does(tree, display)
    result = unescape(tostring(tree, encoding="unicode"))  # as `convert` does
    if "\\" in result:
        log.warning("formula %r: a command that latex2mathml does not know", formula)
    return result


def _set_as_tex_does(tree: Element, display: str) -> None:
    """Corrects the limits of sums between \\left and \\right, and the space around bars, signs and log."""
    for element in tree.iter():
        if display == "block" and element.tag in BELOW and element[0].text in (SUM, PRODUCT):
            element.tag = BELOW[element.tag]
        if element.tag == "mo" and element.text == BAR:
            element.set("lspace", "0")
            element.set("rspace", "0")
        if element.tag == "mrow":
            for before, after in pairwise(list(element)):
                if before.text == LEFT_PARENTHESIS and after.text == MINUS:
                    after.set("form", "prefix")
                is_log_before_name = before.text == "log" and after.text != LEFT_PARENTHESIS
                if is_log_before_name or (after.text == "log" and before.tag != "mo"):
                    element.insert(list(element).index(after), Element("mspace", width="0.17em"))
