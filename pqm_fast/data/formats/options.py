"""Options for reading raw records: the format, the renaming of fields, and the meaning of labels."""

import dataclasses
import json
from functools import lru_cache
from typing import Any, Literal, get_args

from pqm_fast.common.options import Text
from pqm_fast.data.checks import FormatError, show, typed
from pqm_fast.errors import PQMError

FormatName = Literal[
    "auto",
    "trl",
    "openrlhf",
    "math-shepherd",
    "openr",
    "math-aps",
    "rlhflow",
    "pool",
    "search-and-learn",
    "prm800k",
    "processbench",
    "prmbench",
    "reasoneval",
    "versaprm",
]
_NEUTRAL: dict[str, float | None] = {"correct": 1.0, "wrong": 0.0, "unlabelled": None}
_AFTER_ERROR: dict[str, float | None] = {"unlabelled": None, "wrong": 0.0}


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How records are read.

    Neutral steps count as correct by default because the paper of PRM800K does so when it scores solutions
    ("Let's Verify Step by Step", arXiv 2305.20050, appendix F): such a step may be odd or a detour, but it is
    not an error.
    """

    format: FormatName = "auto"
    """Format of the records; auto recognises it from the fields of the first record of each file."""
    neutral: Literal["correct", "wrong", "unlabelled"] = "correct"
    """What a step rated 0 (neutral) counts as where ratings are 1, 0 and -1 (PRM800K, ReasonEval, VersaPRM)."""
    after_error: Literal["unlabelled", "wrong"] = "unlabelled"
    """What steps after the first error count as (ProcessBench, ReasonEval, MR-GSM8K)."""
    step_marker: Text = "ки"
    """Text that ends each step in Math-Shepherd, OpenRLHF and OpenR records; spaces around it are dropped. It may be a
    line break or a blank line: then the text after the last one is a step too."""
    field: list[str] = dataclasses.field(default_factory=list)
    """NAME=FIELD: the field FIELD of a record is read as NAME, such as prompt=question or labels=ratings (a dot goes
    into an object); prompt, completions and labels are the names of the simplest format. May be repeated."""
    label_map: str | None = None
    """-1=0,0=null,1=1: the meaning of the labels of a file, as 1 correct, 0 wrong, a number between, or null for none.
    A label that is not in the map is an error."""
    skip_bad: bool = False
    """Skip bad records, with a counted summary, instead of stopping at the first."""

    def __post_init__(self) -> None:
        choices = {
            "format": get_args(FormatName),
            "neutral": tuple(_NEUTRAL),
            "after_error": tuple(_AFTER_ERROR),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise PQMError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if not self.step_marker.strip() and "\n" not in self.step_marker:
            raise PQMError(f"step_marker is {self.step_marker!r}; give the text or the line break that ends each step")
        for pair in self.field:
            name, equals, source = pair.partition("=")
            if not (name and equals and source):
                raise PQMError(f"field is {pair!r}; write NAME=FIELD, such as prompt=question")
        if len({pair.partition("=")[0] for pair in self.field}) < len(self.field):
            raise PQMError(f"field: a name is given twice in {' '.join(self.field)}; give each one field")
        if self.label_map is not None:
            _parsed_map(self.label_map)

    @property
    def wrong_after_error(self) -> float | None:
        """The label of a step after the first error."""
        return _AFTER_ERROR[self.after_error]

    def renamed(self, raw: dict[str, Any]) -> dict[str, Any]:
        """`raw` with its fields renamed as `field` says. Raises `FormatError`."""
        if not self.field:
            return raw
        sources = dict(pair.split("=", 1) for pair in self.field)
        values = {name: _picked(raw, source, name) for name, source in sources.items()}
        other_fields = {key: value for key, value in raw.items() if key not in sources.values()}
        return other_fields | values

    def label(self, value: Any, name: str) -> Any:
        """The meaning in `label_map` of a label in a file; the label itself without a map. Null stays null unless it is
        in the map. Raises `FormatError`; messages call the label `name`."""
        if self.label_map is None:
            return value
        meanings = _parsed_map(self.label_map)
        for key in (value, _scalar(value)) if isinstance(value, str) else (value,):
            if isinstance(key, (str, int, float, type(None))) and key in meanings:
                return meanings[key]
        if value is None:
            return None
        raise FormatError(
            "bad label", f"{name} is {show(value)}, which is not in the label map {self.label_map}; add it"
        )

    def labels(self, values: Any, name: str) -> Any:
        """A list of labels, each passed through `label`; None stays None. Raises `FormatError`."""
        if values is None or self.label_map is None:
            return values
        return [self.label(value, f"{name} {k}") for k, value in enumerate(typed(values, name, list), 1)]

    def rating(self, value: Any, name: str) -> float | None:
        """The label for a rating of 1, 0 (neutral) or -1; None for null. Raises `FormatError`."""
        if self.label_map is not None:
            return self.label(value, name)
        if value is None:
            return None
        value = typed(value, name, int)
        if value not in (-1, 0, 1):
            raise FormatError("bad label", f"{name} is {value}; it must be 1, 0, -1 or null (or give a label map)")
        return _NEUTRAL[self.neutral] if value == 0 else float(value == 1)


def _picked(raw: dict[str, Any], source: str, name: str) -> Any:
    """The field `source` of a record. A dot goes into an object, unless a field has the whole name."""
    if source in raw:
        return raw[source]
    value: Any = raw
    for key in source.split("."):
        if not isinstance(value, dict) or key not in value:
            field_names = ", ".join(raw) or "none"
            message = (
                f"field {source} (for {name}) is missing (fields found: {field_names}); add it, or correct --field"
            )
            raise FormatError("missing field", message)
        value = value[key]
    return value


def _scalar(text: str) -> Any:
    """The value of a number, true, false or null in JSON; any other text is returned as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()
    return text.strip() if isinstance(value, (list, dict, str)) else value


@lru_cache
def _parsed_map(text: str) -> dict[Any, float | None]:
    """-1=0,0=null,1=1 -> {-1: 0.0, 0: None, 1: 1.0}. Raises `PQMError`."""
    meanings: dict[Any, float | None] = {}
    for entry in text.split(","):
        key, equals, meaning = entry.partition("=")
        value = _scalar(meaning)
        fits = isinstance(value, (int, float)) and 0 <= value <= 1
        if not (equals and key.strip()) or not (fits or value is None):
            raise PQMError(
                f"label_map: {entry!r} in {text!r} gives no label a meaning; write LABEL=MEANING, where MEANING is "
                "a number from 0 (wrong) to 1 (correct), or null for no label: -1=0,0=null,1=1"
            )
        label = None if value is None else float(value)
        if meanings.setdefault(_scalar(key), label) != label:
            raise PQMError(f"label_map: the label {key.strip()} occurs twice in {text!r}; give it one meaning")
    return meanings
