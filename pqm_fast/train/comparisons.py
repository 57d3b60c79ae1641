"""What the losses that compare the solutions of a question find to compare in the training data."""

import numpy as np
from pqm_kernels.losses import Loss

from pqm_fast.data.balance import RARE
from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.pack import PackedBatch
from pqm_fast.data.questions import group_by_question
from pqm_fast.errors import PQMError
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.split import Split

SAMPLE = 500  # questions that are looked at; the others only if none of these has anything to compare


def check_comparisons(config: TrainConfig, training: Split, notes: list[str]) -> None:
    """Adds a warning to `notes` if a loss finds (nearly) nothing to compare.

    Raises PQMError if there is nothing at all, and no other loss to train with.
    """
    for name, loss in config.losses.items():
        if loss.unit != "question":
            continue
        data = ", ".join(config.data)
        if loss.uses_outcomes and (unknown := _unknown_outcomes(training)):
            notes.append(f"{unknown:,} trajectories of unknown outcome: {name} leaves them out")
        questions = group_by_question(training.dataset.question[training.indices])
        several = [training.indices[group] for group in questions if len(group) > 1]
        found, seen = _count(training, loss, several)
        share = found / seen * len(several) / len(questions)
        subject = f"{name} compares {_compared(loss)}"
        remedy = "add solutions, right and wrong ones, of the same questions (equal texts)"
        if not found:
            problem = (
                f"{data}: {subject}, and none of {len(questions):,} questions has any "
                f"({len(several):,} have two solutions or more); {remedy}"
            )
            if name == config.loss:
                raise PQMError(f"{problem}, or choose another --loss")
            notes.append(f"warning: {problem}")
        elif share < RARE:
            notes.append(f"warning: {data}: {subject}, and only {share:.2%} of the questions have any; {remedy}")


def divided_questions(units: PackingUnits, tokens: int, where: str = "") -> str | None:
    """A note if the solutions of some questions do not fit a micro-batch of `tokens`. `where` tells which questions."""
    if not units.divided:
        return None
    subject, verb = ("question", "does") if units.divided == 1 else ("questions", "do")
    return (
        f"{units.divided:,} {subject}{where} {verb} not fit a micro-batch of {tokens:,} tokens and are divided: the "
        "loss compares only solutions in the same micro-batch; raise --micro-batch-tokens to avoid it"
    )


def _compared(loss: Loss) -> str:
    if loss.uses_outcomes:
        return "right with wrong solutions of a question"
    if loss.uses_siblings:
        return "correct with wrong steps that continue the same beginning of a solution"
    return "correct with wrong steps of several solutions of a question"


def _unknown_outcomes(split: Split) -> int:
    assert split.outcomes is not None
    return int(np.isnan(split.outcomes[split.indices]).sum())


def _count(split: Split, loss: Loss, questions: list[np.ndarray]) -> tuple[int, int]:
    """(questions with something to compare, questions looked at), from the trajectories of each question."""
    sample = [questions[i] for i in np.linspace(0, len(questions) - 1, min(SAMPLE, len(questions)), dtype=np.int64)]
    found = sum(_has_both(split.pack(members), loss) for members in sample)
    if found or len(sample) == len(questions):
        return found, max(1, len(sample))
    found = sum(_has_both(split.pack(members), loss) for members in questions)
    return found, len(questions)


def _has_both(batch: PackedBatch, loss: Loss) -> bool:
    """Whether the loss finds a right and a wrong one among the solutions, the steps, or the steps with one parent."""
    assert batch.outcomes is not None
    assert batch.parent is not None
    values = (batch.outcomes if loss.uses_outcomes else batch.labels).numpy()
    group = batch.parent.numpy() if loss.uses_siblings else np.zeros(len(values), np.int64)
    return len(np.intersect1d(group[values >= 0.5], group[values < 0.5])) > 0
