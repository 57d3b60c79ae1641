"""Writes one HTML page that contains its style, scripts and data. It loads nothing, and its policy forbids loading."""

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pqm_fast.report.runs import Run
from pqm_fast.report.sections import page_sections

HERE = Path(__file__).parent
SCRIPTS = ("charts.js", "viewer.js", "start.js")


def page(runs: Sequence[Run], solutions: dict[str, Any], title: str) -> bytes:
    """The page, in UTF-8, without the sections that have no data. For `solutions` see `choose_solutions`."""
    sections, charts = page_sections(runs, solutions)
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{name.lower()}"><h2>{name}</h2>{text}</section>' for name, text in sections.items())
    data = {"runs": [run.name for run in runs], "charts": charts, "solutions": solutions}
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    # the browser runs only the script with this hash, whatever the texts contain
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{(HERE / 'page.css').read_text(encoding='utf-8')}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><noscript><p>Curves and solutions need JavaScript.</p></noscript>"
        f"<nav>{links}</nav>{_buttons(runs)}{body}\n"
        f'<script type="application/json" id="data">{_json(data)}</script>\n'
        f"<script>{script}</script>"
        f'<footer class="note">pqm-fast {version("pqm-fast")}</footer></body></html>\n'
    ).encode("utf-8", "backslashreplace")  # a lone surrogate becomes its escape in JSON


def _json(value: Any) -> str:
    """JSON for a script element: `<` is written as an escape, so no text can end the element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _buttons(runs: Sequence[Run]) -> str:
    """A button for each run, with its colour: a click hides the run in every chart."""
    if len(runs) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-run="{i}" aria-pressed="true" title="{escape(str(run.path))}">'
        f'<i style="background:var(--run-{i % 8})"></i>{escape(run.name)}</button>'
        for i, run in enumerate(runs)
    )
    return f'<div class="runs">{buttons}</div>'
