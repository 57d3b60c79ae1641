r"""Whether answers are the same, whether one is right, and groups of them for a vote.

Two answers are the same if their canonical forms are (`form.py`). What that does not read goes to math-verify
(`judge.py`): its value if it has one, else a symbolic comparison.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations

from pqm_fast.evaluate.answers.form import form
from pqm_fast.evaluate.answers.judge import symbolically_equal
from pqm_fast.evaluate.answers.keys import Form, Key
from pqm_fast.evaluate.answers.notation import normalise

_SYMBOLIC = {"set", "union", "interval", "matrix"}
"""Kinds that math-verify may find equal to what only it reads."""


def same_answer(a: str, b: str) -> bool:
    r"""Whether two answers are the same. An equivalence; never raises on odd text.

    Numbers are the same if they are once rounded to six decimals (below 0.1: to six digits; whole numbers and other
    exact ones near them only exactly), in whatever notation; expressions, equations, inequalities, lists, sets,
    tuples, intervals and matrices by their parts; units are converted. A tuple, a list and a set are three kinds.
    Text is the same without regard to white space and the case of words, and a letter is never the same letter in
    another case. `x = 5` and 5, `5 feet` and 5 are not the same; see `right_answer`.

    What is left is compared by math-verify, in pairs. Over `judge.LIMIT` seconds count as different, with a warning.
    """
    return _same(form(a), form(b), a, b)


def right_answer(answer: str, gold: str) -> bool:
    r"""Whether `answer` is right: the same as `gold`, or that without what one of the two leaves out.

    That may be the variable of `x = 5`, the unit of `5 feet` or `$5`, the percent of `5%`, the degrees of `90^\circ`.
    It may not differ: `$5` is not right for `5 cents`. Symmetric, but no equivalence.
    """
    return _agree(form(answer), form(gold), answer, gold)


def group_answers(answers: Sequence[str | None]) -> list[int]:
    """The class of each answer, numbered by first appearance; -1 for None (no answer).

    Same answers are in one class. So are answers that differ in what some leave out, unless it tells others
    apart: 5 and `5 feet` are one class, but three beside `5 inches`. The order of the answers does not matter.
    """
    classes: dict[Key, list[str]] = {}
    for answer in dict.fromkeys(answer for answer in answers if answer is not None):
        classes.setdefault(form(answer).key, []).append(answer)
    members = list(classes.values())
    forms = [{form(answer): answer for answer in own} for own in members]  # `50%` and 1/2 leave out different things

    def agree(i: int, j: int) -> Iterator[bool]:
        return (_agree(x, y, a, b) for x, a in forms[i].items() for y, b in forms[j].items())

    class_of: dict[str, tuple[int, int]] = {}
    for number, component in enumerate(_components(forms, lambda i, j: any(agree(i, j)))):
        whole = all(all(agree(i, j)) for i, j in combinations(component, 2))
        for i in component:
            class_of.update(dict.fromkeys(members[i], (number, 0 if whole else i)))
    order = list(dict.fromkeys(class_of[answer] for answer in answers if answer is not None))
    return [-1 if answer is None else order.index(class_of[answer]) for answer in answers]


def _components(classes: Sequence[Iterable[Form]], linked: Callable[[int, int], bool]) -> Iterator[list[int]]:
    """Classes that hang together. Only those are compared that share a key, or that math-verify must compare."""
    keys = [{key for own in forms for key in (own.key, *own.bare)} for forms in classes]
    by_key: dict[Key, set[int]] = {}
    for i, own in enumerate(keys):
        for key in own:
            by_key.setdefault(key, set()).add(i)
    unread = {i for i, forms in enumerate(classes) if any(own.unread for own in forms)}
    left = dict.fromkeys(range(len(classes)))
    while left:
        found = [next(iter(left))]
        del left[found[0]]
        for i in found:
            near = unread if i not in unread else left
            near = {*near, *(j for key in keys[i] for j in by_key[key])}
            for j in sorted(near & left.keys()):
                if linked(i, j):
                    found.append(j)
                    del left[j]
        yield sorted(found)


def _same(x: Form, y: Form, a: str, b: str) -> bool:
    if x.key == y.key:
        return x.key != ("text", "") or a == b
    if not (x.unread or y.unread) or not all(own.unread or own.key[0] in _SYMBOLIC for own in (x, y)):
        return False
    return symbolically_equal(*sorted((normalise(a), normalise(b))))


def _agree(x: Form, y: Form, a: str, b: str) -> bool:
    if _same(x, y, a, b):
        return True
    if (x.name and y.name and x.name != y.name) or any(p and q and p != q for p, q in zip(x.unit, y.unit, strict=True)):
        return False
    return not {x.key, *x.bare}.isdisjoint({y.key, *y.bare})
