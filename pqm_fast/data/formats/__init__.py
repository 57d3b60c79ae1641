"""The data formats: how each is recognised by its fields, and how its raw records become `Record`s.

Every `parse` function takes (raw object, record id, options), raises `FormatError` for what it cannot use, and builds
its records with `record`, which checks steps and labels for all formats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pqm_fast.data.checks import FormatError
from pqm_fast.data.formats.first_error import parse_processbench, parse_reasoneval
from pqm_fast.data.formats.labelled import parse_prmbench, parse_rlhflow, parse_trl, parse_versaprm
from pqm_fast.data.formats.marked import parse_math_shepherd, parse_openr, parse_openrlhf
from pqm_fast.data.formats.options import FormatName, ReadOptions
from pqm_fast.data.formats.pools import parse_pool, parse_search_and_learn
from pqm_fast.data.formats.step_trees import parse_math_aps, parse_prm800k
from pqm_fast.data.records import Record

__all__ = ["FORMATS", "FormatName", "ReadOptions", "recognise"]


@dataclass(frozen=True)
class Format:
    """The fields by which a format is recognised (a dot goes into an object, `|` separates alternatives), and its
    parser."""

    fields: tuple[str, ...]
    parse: Callable[[dict[str, Any], str, ReadOptions], list[Record]]

    def fits(self, raw: dict[str, Any]) -> bool:
        return all(any(_has(raw, name) for name in names.split("|")) for names in self.fields)

    def __str__(self) -> str:
        return ", ".join(names.replace("|", " or ") for names in self.fields)


# openrlhf before math-shepherd: OpenRLHF's copies of Math-Shepherd keep `label` beside `value`
FORMATS: dict[str, Format] = {
    "trl": Format(("prompt", "completions|steps"), parse_trl),
    "openrlhf": Format(("input", "value"), parse_openrlhf),
    "math-shepherd": Format(("input", "label"), parse_math_shepherd),
    "openr": Format(("question", "process"), parse_openr),
    "math-aps": Format(("question", "reasoning_steps"), parse_math_aps),
    "rlhflow": Format(("conversations",), parse_rlhflow),
    "pool": Format(("question", "responses"), parse_pool),
    # a record with only completions may hold the steps of one solution
    "search-and-learn": Format(
        ("problem|question", "completions", "scores|pred|completion_tokens"), parse_search_and_learn
    ),
    "prm800k": Format(("question.problem", "label.steps"), parse_prm800k),
    "processbench": Format(("problem", "steps"), parse_processbench),
    "prmbench": Format(("modified_process", "error_steps"), parse_prmbench),
    "reasoneval": Format(("question", "model_output_step_format|model_output_steps"), parse_reasoneval),
    "versaprm": Format(("question", "chain_of_thoughts"), parse_versaprm),
}


def _has(raw: Any, name: str) -> bool:
    for key in name.split("."):
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw is not None


def recognise(raw: dict[str, Any]) -> str:
    """The name of the format that has the fields of `raw`. Raises `FormatError`."""
    for name, candidate in FORMATS.items():
        if candidate.fits(raw):
            return name
    formats = ", ".join(f"{name} ({fields})" for name, fields in FORMATS.items())
    raise FormatError(
        "unknown format",
        f"fields {', '.join(raw) or 'none'} are of no known format; the formats are {formats}; "
        "if other fields hold the question, the steps and the labels, name them with --field",
    )
