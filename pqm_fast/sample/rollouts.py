"""Requests, checks and journals rollouts of prefixes. Solutions that begin alike share them."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from pqm_fast.data.candidate import is_cut_off, known_answer
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.ranks.group import Ranks
from pqm_fast.ranks.journals import Journals
from pqm_fast.sample.answer_check import ends_right
from pqm_fast.sample.open_policy import open_policy
from pqm_fast.sample.options import AnnotateConfig
from pqm_fast.sample.policy import Outcome, Request, complete, request_seed
from pqm_fast.sample.policy_name import parse_policy
from pqm_fast.sample.prefix_search import next_prefixes


@dataclass(slots=True)
class _WaitingRecord:
    """A record, and the number of prefixes it waits for."""

    record: Record
    awaited: int = 0


@dataclass(slots=True)
class _Prefix:
    verdicts: dict[int, bool] = field(default_factory=dict)  # by rollout number: whether it ended right
    waiting: list[_WaitingRecord] = field(default_factory=list)
    requested: bool = False
    error: RecordError | None = None  # why the policy cannot take it


class Rollouts:
    """The rollouts of all prefixes so far, starting with those in the journals."""

    def __init__(self, config: AnnotateConfig, journals: Journals, ranks: Ranks):
        self.config, self.journals, self.ranks = config, journals, ranks
        self.policy_name = parse_policy(config.policy).model
        self.prefixes: dict[str, _Prefix] = {}
        self.ready: deque[Request] = deque()
        journals.replay(self._replay)

    def measure(self, records: Iterator[Record], bar: tqdm) -> None:
        """Requests rollouts until every record has what its labels need. Raises PQMError if that fails."""

        def next_request() -> Request | None:
            while not self.ready:
                record = next(records, None)
                if record is None:
                    return None
                bar.update(self._advance(_WaitingRecord(record)))
            return self.ready.popleft()

        first = next_request()
        if first is None:
            return  # the journals have everything: the policy is not needed
        self.ready.appendleft(first)
        policy = open_policy(self.config.policy, self.config.writing, bar.set_postfix_str, self.ranks)
        try:
            for outcome in complete(policy, next_request):
                for waiting_record in self._take(outcome):
                    bar.update(self._advance(waiting_record))
        finally:
            policy.close()

    def collect(self) -> None:
        """Waits until each rank has measured its records. Then rank 0 has the rollouts of all."""
        own_errors = [(k, str(p.error), p.error.kind) for k, p in self.prefixes.items() if p.error is not None]
        for errors in self.ranks.gather(own_errors):
            for key, message, kind in errors:
                self.prefixes.setdefault(key, _Prefix()).error = RecordError(message, kind)
        self.journals.collect()

    def right_counts(self, record: Record) -> tuple[dict[int, int], list[int]]:
        """({prefix: right rollouts} for the prefixes measured so far, the prefixes to measure next).

        The second is empty once the search needs nothing more. Raises RecordError if the policy could not take one of
        the prefixes.
        """
        counts = self.whole_solution(record)
        while next_to_measure := next_prefixes(len(record.steps), counts, self.config.search):
            prefixes = {t: self.prefixes.get(_key(record, t), _Prefix()) for t in next_to_measure}
            for prefix in prefixes.values():
                if prefix.error is not None:
                    raise RecordError(f"record {record.id}: {prefix.error}", prefix.error.kind)
            if unmeasured := [t for t, prefix in prefixes.items() if len(prefix.verdicts) < self.config.rollouts]:
                return counts, unmeasured
            counts |= {t: sum(prefix.verdicts.values()) for t, prefix in prefixes.items()}
        return counts, []

    def whole_solution(self, record: Record) -> dict[int, int]:
        """{last step: 1 if the solution ends right, otherwise 0}, or {} if it was cut off.

        A whole solution is its only rollout: nothing is left to write.
        """
        if is_cut_off(record):
            return {}
        text = "\n".join(record.steps)
        return {len(record.steps): int(ends_right("", text, True, known_answer(record)))}

    def _replay(self, offset: int, row: dict[str, Any]) -> None:
        prefix, rollout, verdict = row["prefix"], row["rollout"], row["right"]
        valid = type(prefix) is str and type(rollout) is int and 0 <= rollout < self.config.rollouts
        if not valid or type(verdict) is not bool:
            raise TypeError("not the row of a rollout")
        self.prefixes.setdefault(prefix, _Prefix()).verdicts[rollout] = verdict

    def _advance(self, waiting_record: _WaitingRecord) -> bool:
        """Queues the requests that the record needs next. Returns whether it needs nothing more."""
        record = waiting_record.record
        try:
            _, unmeasured = self.right_counts(record)
        except RecordError as error:
            if not self.config.read.skip_bad:
                raise PQMError(f"{error}; --skip-bad leaves such records out") from error
            return True
        for t in unmeasured:
            key = _key(record, t)
            prefix = self.prefixes.setdefault(key, _Prefix())
            prefix.waiting.append(waiting_record)
            waiting_record.awaited += 1
            if not prefix.requested:
                prefix.requested = True
                self.ready += self._requests(record, t, key, prefix)
        return not unmeasured

    def _requests(self, record: Record, t: int, key: str, prefix: _Prefix) -> Iterator[Request]:
        steps, gold = tuple(record.steps[:t]), known_answer(record)
        for k in range(self.config.rollouts):
            if k not in prefix.verdicts:
                seed = request_seed(self.config.seed, self.policy_name, record.prompt, *steps, k)
                yield Request(record.prompt, steps, seed, (key, k, gold))

    def _take(self, outcome: Outcome) -> list[_WaitingRecord]:
        """Checks a rollout and journals the verdict. Returns the records that now wait for nothing more."""
        request, completion = outcome
        key, k, gold = request.key
        prefix = self.prefixes[key]
        if isinstance(completion, RecordError):
            prefix.error = completion
        else:
            verdict = ends_right("\n".join(request.steps), completion.text, completion.finished, gold)
            self.journals.append({"prefix": key, "rollout": k, "right": verdict})
            prefix.verdicts[k] = verdict
        if len(prefix.verdicts) < self.config.rollouts and prefix.error is None:
            return []
        waiting, prefix.waiting = prefix.waiting, []
        for waiting_record in waiting:
            waiting_record.awaited -= 1
        return [waiting_record for waiting_record in waiting if not waiting_record.awaited]


def _key(record: Record, t: int) -> str:
    """The key of prefix t, equal for solutions of one question that begin with the same t steps."""
    text = json.dumps([record.prompt, known_answer(record), record.steps[:t]])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
