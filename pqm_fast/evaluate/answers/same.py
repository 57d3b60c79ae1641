r"""Compares answers: whether two are the same, whether one is right, and which ones vote together.

Two answers are the same if their canonical forms are (`form.py`). Answers that have no canonical form are compared by
math-verify (`judge.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations

from pqm_fast.evaluate.answers.form import form
from pqm_fast.evaluate.answers.judge import symbolically_equal
from pqm_fast.evaluate.answers.keys import Form, Key
from pqm_fast.evaluate.answers.notation import normalise

_SYMBOLIC = {"set", "union", "interval", "matrix"}
"""Kinds that math-verify may find equal to an answer that only math-verify reads."""


def same_answer(a: str, b: str) -> bool:
    r"""Whether two answers are the same. This is an equivalence, and never raises on odd text.

    Numbers are the same, in whatever notation, if they agree after rounding to six decimals (numbers below 0.1: to six
    digits; whole numbers, and exact numbers very near a simple one, must agree exactly). Expressions, equations,
    inequalities, lists, sets, tuples, intervals and matrices are compared by their parts, and units are converted. A
    tuple, a list and a set are three different kinds. Text is compared without regard to white space and the case of
    words, but a single letter differs from the same letter in the other case. `x = 5` and 5, or `5 feet` and 5, are not
    the same; see `right_answer`.

    Answers that cannot be read here are compared by math-verify, in pairs. A pair that takes more than `judge.LIMIT`
    seconds counts as different, with a warning.
    """
    return _same(form(a), form(b), a, b)


def right_answer(answer: str, gold: str) -> bool:
    r"""Whether `answer` is right: the same as `gold`, apart from a part that one of the two leaves out.

    That part may be the variable of `x = 5`, the unit of `5 feet` or `$5`, the percent of `5%`, or the degrees of
    `90^\circ`. It must not differ: `$5` is not right for `5 cents`. The relation is symmetric, but not an equivalence.
    """
    return _agree(form(answer), form(gold), answer, gold)


def group_answers(answers: Sequence[str | None]) -> list[int]:
    """The class of each answer, numbered by first appearance; -1 for None (no answer).

    Answers that are the same are in one class. So are answers that differ only in a part that some leave out, unless
    that part distinguishes others: 5 and `5 feet` are one class, but together with `5 inches` they are three. The order
    of the answers does not matter.
    """
    classes: dict[Key, list[str]] = {}
    for answer in dict.fromkeys(answer for answer in answers if answer is not None):
        classes.setdefault(form(answer).key, []).append(answer)
    members = list(classes.values())
    forms = [{form(answer): answer for answer in group} for group in members]  # `50%` and 1/2 have different bare keys

    def agree(i: int, j: int) -> Iterator[bool]:
        return (_agree(x, y, a, b) for x, a in forms[i].items() for y, b in forms[j].items())

    class_of: dict[str, tuple[int, int]] = {}
    for number, component in enumerate(_components(forms, lambda i, j: any(agree(i, j)))):
        all_agree = all(all(agree(i, j)) for i, j in combinations(component, 2))
        for i in component:
            class_of.update(dict.fromkeys(members[i], (number, 0 if all_agree else i)))
    order = list(dict.fromkeys(class_of[answer] for answer in answers if answer is not None))
    return [-1 if answer is None else order.index(class_of[answer]) for answer in answers]


def _components(classes: Sequence[Iterable[Form]], linked: Callable[[int, int], bool]) -> Iterator[list[int]]:
    """The connected components of classes. Two classes are compared only if they share a key, or if math-verify must
    compare them."""
    keys = [{key for member in forms for key in (member.key, *member.bare)} for forms in classes]
    by_key: dict[Key, set[int]] = {}
    for i, class_keys in enumerate(keys):
        for key in class_keys:
            by_key.setdefault(key, set()).add(i)
    unread = {i for i, forms in enumerate(classes) if any(member.unread for member in forms)}
    remaining = dict.fromkeys(range(len(classes)))
    while remaining:
        component = [next(iter(remaining))]
        del remaining[component[0]]
        for i in component:
            neighbours = unread if i not in unread else remaining
            neighbours = {*neighbours, *(j for key in keys[i] for j in by_key[key])}
            for j in sorted(neighbours & remaining.keys()):
                if linked(i, j):
                    component.append(j)
                    del remaining[j]
        yield sorted(component)


def _same(x: Form, y: Form, a: str, b: str) -> bool:
    if x.key == y.key:
        return x.key != ("text", "") or a == b
    if not (x.unread or y.unread) or not all(answer.unread or answer.key[0] in _SYMBOLIC for answer in (x, y)):
        return False
    return symbolically_equal(*sorted((normalise(a), normalise(b))))


def _agree(x: Form, y: Form, a: str, b: str) -> bool:
    if _same(x, y, a, b):
        return True
    if (x.name and y.name and x.name != y.name) or any(p and q and p != q for p, q in zip(x.unit, y.unit, strict=True)):
        return False
    return not {x.key, *x.bare}.isdisjoint({y.key, *y.bare})
