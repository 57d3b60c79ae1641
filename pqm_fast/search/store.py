"""The journals of a search: completions, scores of rounds, and finished rows of the pool."""

from typing import Any, Literal, NamedTuple

from pqm_fast.ranks.journals import Journals
from pqm_fast.sample.policy import Completion
from pqm_fast.search.solution import Scores

Part = Literal["search", "samples"]


class Key(NamedTuple):
    """A completion: its question, the part and the round, its number in the round, the blank pieces before it."""

    q: int
    part: str
    round: int
    number: int
    blanks: int


class Store:
    """What is done, also by interrupted runs. `questions`: how many there are."""

    def __init__(self, journals: Journals, questions: int):
        self.journals, self.questions = journals, questions
        self.completions: dict[Key, int] = {}
        self.rounds: dict[tuple[int, str, int], int] = {}
        self.rows: dict[int, int] = {}
        """{question: place of its row of the pool}."""
        journals.replay(self._take)

    def completion(self, key: Key) -> Completion | None:
        """The stored completion."""
        if key not in self.completions:
            return None
        row = self.journals.row(self.completions[key])
        return Completion(row["text"], row["finished"], row["tokens"], row["goes_on"])

    def keep_completion(self, key: Key, completion: Completion) -> None:
        """Stores a completion."""
        self.journals.append({"completion": key, **completion._asdict()})

    def scores(self, q: int, part: Part, round: int) -> list[Scores] | None:
        """The stored scores of the continuations of a question in a round."""
        if (q, part, round) not in self.rounds:
            return None
        row = self.journals.row(self.rounds[q, part, round])
        return [tuple(scores) for scores in row["scores"][str(q)]]

    def keep_scores(self, part: Part, round: int, scores: dict[int, list[Scores]]) -> None:
        """Stores the scores of a round of several questions in one row: they were computed together."""
        self.journals.append({"part": part, "round": round, "scores": scores})

    def keep_row(self, q: int, row: dict[str, Any]) -> None:
        """Stores the row of a question's pool."""
        self.rows[q] = self.journals.append({"question": q, "pool": row})

    def row(self, q: int) -> dict[str, Any]:
        """The row of a question's pool."""
        return self.journals.row(self.rows[q])["pool"]

    def _take(self, place: int, row: dict[str, Any]) -> None:
        if "completion" in row:
            if [type(row[name]) for name in ("text", "finished", "tokens", "goes_on")] != [str, bool, int, bool]:
                raise TypeError("not the row of a completion")
            self.completions[Key(*row["completion"])] = place
        elif "scores" in row:
            for q in row["scores"]:
                self.rounds[int(q), row["part"], row["round"]] = place
        elif row["question"] in range(self.questions) and isinstance(row["pool"], dict):
            self.rows[row["question"]] = place
        else:
            raise TypeError("not a row of a search")
