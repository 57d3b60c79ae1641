"""ProcessBench: does the model find the first wrong step, and leave correct solutions alone?"""

from collections.abc import Sequence

from pqm_fast.errors import PQMError


def processbench(
    scores: Sequence[Sequence[float | None]], first_errors: Sequence[int], threshold: float = 0.0
) -> dict[str, float | int | None]:
    """The figures of ProcessBench (arXiv 2412.06559).

    The prediction for a solution is its first step with q < `threshold`, -1 if there is none; it must equal
    the label exactly. A step without a score (None: it was cut off) is never predicted wrong.

    Args:
        scores: Q-values of each solution, one per step.
        first_errors: 0-based index of each solution's first wrong step, -1 for a correct solution.
        threshold: fixed beforehand, never picked on the data it is scored on.

    Returns:
        `accuracy_on_erroneous`, `accuracy_on_correct`, their harmonic mean `f1` (each None where undefined),
        and the number of `erroneous` and `correct` solutions.

    Raises:
        PQMError: a label outside -1 .. steps-1, different lengths, or a score that is NaN.
    """
    if len(scores) != len(first_errors):
        raise PQMError(f"{len(scores)} solutions but {len(first_errors)} first-error labels: pass one for each")
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for i, (steps, label) in enumerate(zip(scores, first_errors, strict=True)):
        if not -1 <= label < len(steps):
            raise PQMError(f"solution {i}: first error {label}, expected -1 .. {len(steps) - 1}")
        if any(q is not None and q != q for q in steps):
            raise PQMError(f"solution {i}: a step score is NaN; check the model's output")
        predicted = next((t for t, q in enumerate(steps) if q is not None and q < threshold), -1)
        hits[label >= 0].append(predicted == label)
    erroneous, correct = (sum(hits[k]) / len(hits[k]) if hits[k] else None for k in (True, False))
    f1 = None
    if erroneous is not None and correct is not None:
        f1 = 2 * erroneous * correct / (erroneous + correct) if erroneous + correct else 0.0
    return {
        "accuracy_on_erroneous": erroneous,
        "accuracy_on_correct": correct,
        "f1": f1,
        "erroneous": len(hits[True]),
        "correct": len(hits[False]),
    }
