"""Rounds in which the ways of a comparison take turns, and the rates over all passes of one way."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from pqm_benchmarks.comparison.report import Record
from pqm_benchmarks.comparison.run import Add

Setting = dict[str, Any]
"""The choices that make a way fastest on the device, such as {"batch": 32, "recompute": False}."""
Tried = Sequence[dict[str, Any]]
"""{"setting", "seconds", "why"} of each setting that was tried; `why` is the reason if there are no seconds."""
Round = TypeVar("Round")


class SettingSearch(NamedTuple):
    """The settings in which a way can be timed."""

    settings: list[Setting]
    """The fastest first."""
    tried: Tried = ()
    wrong: str | None = None
    """Why the way must not be timed in any of them, if it computes something wrong."""


class Way(Protocol):
    """The names of a way, which its records hold."""

    @property
    def title(self) -> str: ...
    @property
    def source(self) -> str: ...


class Passes(Protocol):
    """Timed passes over all questions, in a new model."""

    @property
    def seconds(self) -> list[float]: ...
    @property
    def peak_bytes(self) -> int | None: ...


def take_turns(
    ways: Mapping[str, Way],
    rounds: int,
    unit: str,
    search: Callable[[str], SettingSearch],
    measure: Callable[[str, Setting], Round],
    record: Callable[[str, Setting, list[Round]], Record],
    add: Add,
) -> None:
    """Measures every way once in each round. In the first round, each way first searches for its setting.

    `search` finds the settings of a way, `measure` runs one round of it, and `record` makes its record, with
    {unit}_per_s, from all rounds so far; its names, its setting and the settings tried are added here. Calls `add` with
    all records and failures after every way.
    """
    tried: dict[str, Tried] = {}
    settings: dict[str, list[Setting]] = {}
    measured: dict[str, list[Round]] = {}
    records: dict[str, Record] = {}
    failed: dict[str, str] = {}
    for name in [*ways] * rounds:
        way = ways[name]
        if name not in tried:
            settings[name], tried[name], wrong = search(name)
            for t in tried[name]:
                print(f"{way.title}, {t['setting']}: {t['why'] or format(t['seconds'], '.3f') + ' s'}", flush=True)
            if not settings[name]:
                failed[name] = "; ".join(dict.fromkeys(t["why"] for t in tried[name]))
            elif wrong:
                failed[name] = wrong
        if name not in failed:
            setting, result, why = _first_that_runs(settings[name], partial(measure, name))
            if why is None:
                settings[name] = [setting]  # for the following rounds too
                rounds_so_far = measured.setdefault(name, [])
                rounds_so_far.append(result)
                about = {"way": name, "title": way.title, "source": way.source, "setting": setting}
                records[name] = about | {"tried": tried[name]} | record(name, setting, rounds_so_far)
                print(f"{way.title}: {records[name][f'{unit}_per_s']:,.1f} {unit}/s", flush=True)
            else:
                failed[name] = why
        add(list(records.values()), [{"way": way, "why": why} for way, why in failed.items()])


def _first_that_runs(settings: Sequence[Setting], measure: Callable[[Setting], Any]) -> tuple[Any, Any, str | None]:
    """(setting, result, None) of the first setting that runs, or (setting, None, reason) of the last one if none does.
    The fastest setting may not have enough memory for all questions."""
    from pqm_benchmarks.shared.attempts import attempt_alone

    for setting in settings:
        result, why = attempt_alone(partial(measure, setting))
        if why is None:
            break
    return setting, result, why


def over_median(
    unit: str, questions: Sequence[Sequence[Any]], rounds: Sequence[Passes], computed_tokens: int, flops: int
) -> Record:
    """The part of a record that comes from the passes of all rounds. Rates are those of the median pass. `unit` is the
    plural of what is counted ("solutions"); `computed_tokens` and `flops` are those of one pass."""
    seconds = statistics.median(lap for passes in rounds for lap in passes.seconds)
    return {
        "lap_seconds": [passes.seconds for passes in rounds],
        "peak_bytes": max((passes.peak_bytes for passes in rounds if passes.peak_bytes is not None), default=None),
        f"{unit}_per_s": sum(map(len, questions)) / seconds,
        "real_tokens_per_s": sum(len(t.input_ids) for solutions in questions for t in solutions) / seconds,
        "computed_tokens_per_s": computed_tokens / seconds,
        "tflops": flops / seconds / 1e12,
    }
