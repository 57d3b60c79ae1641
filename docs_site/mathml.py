"""Hook of mkdocs: formulas as GitHub writes them, $`...`$ and ```math, become MathML when the site is built.

Browsers draw MathML themselves, so a page needs neither a script nor the network.
"""

import logging
import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

LOG = re.compile(r"(?<!<msub>)<mi>log</mi>(?!<mo[^>]*>&#x00028;)")
INLINE = r"\$`([^`]+)`\$"
BEFORE_CODE = 200  # the priority of `code` is 190
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
        result = convert(formula, display=display)
    except Exception as error:  # the package has no base class for its errors
        log.warning("formula %r: %s", formula, error or type(error).__name__)
        return formula
    if "\\" in result:
        log.warning("formula %r: a command that latex2mathml does not know", formula)
    return LOG.sub(r'\g<0><mspace width="0.17em"/>', result)  # as in TeX, but not before a parenthesis
