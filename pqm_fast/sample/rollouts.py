"""Rollouts of prefixes: asked for, judged, written down, shared between solutions that begin alike."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pqm_fast.common.journal import Journal
from pqm_fast.data.candidate import is_cut_off, known_answer
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.sample.judge import right
from pqm_fast.sample.policy import Outcome, Request, complete, open_policy, parse_policy, request_seed
from pqm_fast.sample.search import next_prefixes

if TYPE_CHECKING:
    from pqm_fast.sample.annotate import AnnotateConfig


@dataclass(slots=True)
class _Task:
    """A record, and how many prefixes it waits for."""

    record: Record
    awaited: int = 0


@dataclass(slots=True)
class _Prefix:
    verdicts: dict[int, bool] = field(default_factory=dict)  # by rollout: whether it ended right
    waiting: list[_Task] = field(default_factory=list)
    asked: bool = False
    error: RecordError | None = None  # why the policy does not take it


class Rollouts:
    """What is known of prefixes; begins with what the journal holds."""

    def __init__(self, config: "AnnotateConfig", journal: Journal):
        self.config, self.journal = config, journal
        self.name = parse_policy(config.policy).model
        self.prefixes: dict[str, _Prefix] = {}
        self.ready: deque[Request] = deque()
        journal.replay(self._replayed)

    def measure(self, records: Iterator[Record], bar: tqdm) -> None:
        """Asks the policy until every record has what its labels need. Raises PQMError if that cannot be had."""

        def next_request() -> Request | None:
            while not self.ready:
                record = next(records, None)
                if record is None:
                    return None
                bar.update(self._advance(_Task(record)))
            return self.ready.popleft()

        first = next_request()
        if first is None:
            return  # the journal held everything: the policy is not needed
        self.ready.appendleft(first)
        policy = open_policy(self.config.policy, self.config.writing, bar.set_postfix_str)
        try:
            for outcome in complete(policy, next_request):
                for task in self._take(outcome):
                    bar.update(self._advance(task))
        finally:
            policy.close()

    def right(self, record: Record) -> tuple[dict[int, int], list[int]]:
        """(right rollouts of each prefix that the search has asked for, the prefixes that are still to be measured).

        Raises RecordError if the policy did not take one of them.
        """
        right = self.own_answer(record)
        while wanted := next_prefixes(len(record.steps), right, self.config.search):
            found = {t: self.prefixes.get(_key(record, t), _Prefix()) for t in wanted}
            for prefix in found.values():
                if prefix.error is not None:
                    raise RecordError(f"record {record.id}: {prefix.error}", prefix.error.kind)
            if missing := [t for t, prefix in found.items() if len(prefix.verdicts) < self.config.rollouts]:
                return right, missing
            right |= {t: sum(prefix.verdicts.values()) for t, prefix in found.items()}
        return right, []

    def own_answer(self, record: Record) -> dict[int, int]:
        """{last step: 1 or 0}: a whole solution is its own rollout, nothing is left to write. {} if it was cut off."""
        if is_cut_off(record):
            return {}
        text = "\n".join(record.steps)
        return {len(record.steps): int(right("", text, True, known_answer(record)))}

    def _replayed(self, place: int, row: dict[str, Any]) -> None:
        prefix, rollout, verdict = row["prefix"], row["rollout"], row["right"]
        known = type(prefix) is str and type(rollout) is int and 0 <= rollout < self.config.rollouts
        if not known or type(verdict) is not bool:
            raise TypeError("no row of a rollout")
        self.prefixes.setdefault(prefix, _Prefix()).verdicts[rollout] = verdict

    def _advance(self, task: _Task) -> bool:
        """Puts what the record needs next where requests come from. Returns whether it needs nothing more."""
        record = task.record
        try:
            _, missing = self.right(record)
        except RecordError as error:
            if not self.config.read.skip_bad:
                raise PQMError(f"{error}; --skip-bad leaves such records out") from error
            return True
        for t in missing:
            key = _key(record, t)
            prefix = self.prefixes.setdefault(key, _Prefix())
            prefix.waiting.append(task)
            task.awaited += 1
            if not prefix.asked:
                prefix.asked = True
                self.ready += self._requests(record, t, key, prefix)
        return not missing

    def _requests(self, record: Record, t: int, key: str, prefix: _Prefix) -> Iterator[Request]:
        steps, gold = tuple(record.steps[:t]), known_answer(record)
        for k in range(self.config.rollouts):
            if k not in prefix.verdicts:
                seed = request_seed(self.config.seed, self.name, record.prompt, *steps, k)
                yield Request(record.prompt, steps, seed, (key, k, gold))

    def _take(self, outcome: Outcome) -> list[_Task]:
        """Judges a rollout. Returns the tasks that have nothing more to wait for."""
        request, completion = outcome
        key, k, gold = request.key
        prefix = self.prefixes[key]
        if isinstance(completion, RecordError):
            prefix.error = completion
        else:
            verdict = right("\n".join(request.steps), completion.text, completion.finished, gold)
            self.journal.append({"prefix": key, "rollout": k, "right": verdict})
            prefix.verdicts[k] = verdict
        if len(prefix.verdicts) < self.config.rollouts and prefix.error is None:
            return []
        waiting, prefix.waiting = prefix.waiting, []
        for task in waiting:
            task.awaited -= 1
        return [task for task in waiting if not task.awaited]


def _key(record: Record, t: int) -> str:
    """The same for solutions of one question that begin with the same t steps."""
    text = json.dumps([record.prompt, known_answer(record), record.steps[:t]])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
