"""Rounds in which the ways of a comparison take turns, and what comes of the passes of one way."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from pqm_benchmarks.shared.comparison import Add, Record

Setting = dict[str, Any]
Tried = Sequence[dict[str, Any]]
"""{"setting", "seconds", "why"} of each setting that was tried: why there are no seconds."""
Round = TypeVar("Round")


class Found(NamedTuple):
    """What a way can be timed in."""

    settings: list[Setting]
    """The best one first."""
    tried: Tried = ()
    wrong: str | None = None
    """Why it must not be timed in any of them."""


class Way(Protocol):
    """What a record says of every way."""

    @property
    def title(self) -> str: ...
    @property
    def source(self) -> str: ...


class Passes(Protocol):
    """Over all questions, in a model made anew."""

    @property
    def seconds(self) -> list[float]: ...
    @property
    def peak_bytes(self) -> int | None: ...


def take_turns(
    ways: Mapping[str, Way],
    rounds: int,
    unit: str,
    search: Callable[[str], Found],
    measure: Callable[[str, Setting], Round],
    record: Callable[[str, Setting, list[Round]], Record],
    add: Add,
) -> None:
    """Measures every way once in each round. In the first one, each looks for its setting before.

    `search` finds the settings of a way. `measure` is one round of a way. `record` makes of all rounds so far what is
    stored of it, with {unit}_per_s; how it is called, its setting and those tried are added here. Calls `add` with
    records and failures after every way.
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
            setting, found, why = _first_that_runs(settings[name], partial(measure, name))
            if why is None:
                settings[name] = [setting]  # of the rounds to come too
                own = measured.setdefault(name, [])
                own.append(found)
                about = {"way": name, "title": way.title, "source": way.source, "setting": setting}
                records[name] = about | {"tried": tried[name]} | record(name, setting, own)
                print(f"{way.title}: {records[name][f'{unit}_per_s']:,.1f} {unit}/s", flush=True)
            else:
                failed[name] = why
        add(list(records.values()), [{"way": way, "why": why} for way, why in failed.items()])


def _first_that_runs(settings: Sequence[Setting], measure: Callable[[Setting], Any]) -> tuple[Any, Any, str | None]:
    """(setting, what was measured, None) or, of the last one, (setting, None, why there is nothing): the fastest may
    not have the memory for all questions."""
    from pqm_benchmarks.shared.attempts import attempt_alone

    for setting in settings:
        found, why = attempt_alone(partial(measure, setting))
        if why is None:
            break
    return setting, found, why


def over_median(
    unit: str, questions: Sequence[Sequence[Any]], rounds: Sequence[Passes], computed_tokens: int, flops: int
) -> Record:
    """What is stored of the passes of all rounds: rates are over the median pass. `unit` is what a solution is called
    here, `computed_tokens` and `flops` are those of one pass."""
    seconds = statistics.median(lap for own in rounds for lap in own.seconds)
    return {
        "lap_seconds": [own.seconds for own in rounds],
        "peak_bytes": max((own.peak_bytes for own in rounds if own.peak_bytes is not None), default=None),
        f"{unit}_per_s": sum(map(len, questions)) / seconds,
        "real_tokens_per_s": sum(len(t.input_ids) for own in questions for t in own) / seconds,
        "computed_tokens_per_s": computed_tokens / seconds,
        "tflops": flops / seconds / 1e12,
    }
