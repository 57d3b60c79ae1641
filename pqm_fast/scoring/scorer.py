"""Q-values for solutions from Python."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from pqm_fast.common.options import Attention, DType
from pqm_fast.data.batches import Units
from pqm_fast.data.checks import FormatError, check_values, record, show, typed
from pqm_fast.data.encode import Encoded, Encoder, OverLong
from pqm_fast.data.encode_text import TextEncoder
from pqm_fast.data.loader import load_steps
from pqm_fast.data.pack import PackedBatch, pack
from pqm_fast.data.questions import question_number
from pqm_fast.data.records import Record
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import Diverged, PQMError, RecordError
from pqm_fast.model.device import pick_device, pick_dtype
from pqm_fast.model.loading import load_config
from pqm_fast.model.recipe import CONFIG_KEY, Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.model.tokenizer import load_tokenizer
from pqm_fast.scoring.other_heads import load_other
from pqm_fast.scoring.other_prms import OtherPRM

Scores = list[float | None]
# Batches that a GPU has before it while the host reads the scores of an earlier one.
AHEAD = 8


class Scorer:
    """Scores steps with a trained checkpoint, under the template that the checkpoint was trained with.

    `prefix_tree`: what solutions of one question share is computed once; the scores are the same up to rounding.
    """

    def __init__(
        self, model: StepQModel, encoder: Encoder | TextEncoder, max_tokens: int = 16384, prefix_tree: bool = False
    ):
        self.model, self.encoder, self.max_tokens, self.prefix_tree = model.eval(), encoder, max_tokens, prefix_tree

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: DType = "auto",
        max_length: int | None = None,
        max_tokens: int = 16384,
        prefix_tree: bool = False,
        attention: Attention = "auto",
        other: OtherPRM | None = None,
    ) -> "Scorer":
        """`dtype` of weights and computation; auto: bfloat16 on a GPU, and on a CPU that is measured to be clearly
        faster in it, otherwise float32. `max_length`: longest solution in tokens (default: the model's context);
        `max_tokens`: of one forward pass. `other`: how a PRM of others is read, such as `OtherPRM("trl")`.

        Raises PQMError if `path` is neither a checkpoint of pqm-fast nor what `other` says, and for options that it
        cannot be used with.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise PQMError(f"model: {show(path)} ({type(path).__name__}) was given; name a folder or a hub id")
        if not isinstance(other, (OtherPRM, type(None))):
            raise PQMError(f"other: {show(other)} was given; give OtherPRM({show(other)}) or other settings of it")
        path = os.fspath(path)
        for name, number in (("max_length", max_length), ("max_tokens", max_tokens)):
            whole = isinstance(number, Integral) and not isinstance(number, bool)
            if not whole and (number is not None or name == "max_tokens"):
                raise PQMError(f"{name}: {show(number)} ({type(number).__name__}) was given; give a whole number")
        where = pick_device(device)
        if max_tokens < 1:
            raise PQMError(f"max_tokens: {max_tokens} was given; it must be at least 1")
        config = load_config(path)
        tokenizer = load_tokenizer(path)
        ways: dict[str, Any] = {"device": where, "attention": attention}
        if other is not None and other.given:
            if hasattr(config, CONFIG_KEY):
                raise PQMError(f"{path}: a checkpoint of pqm-fast knows its own head and template; leave out --preset")
            prm = other.settled()
            make_encoder: Any = TextEncoder
            template: Any = prm.layout_for(tokenizer)
            classifier = load_other(path, config, pick_dtype(dtype, where, path), prm, tokenizer)
            model = StepQModel.of(classifier, path, **ways)
            model.check_vocabulary(tokenizer)
        else:
            template = Recipe.from_config(config, path).template
            dtype_of_model = pick_dtype(dtype, where, path)
            model = StepQModel.from_pretrained(path, dtype=dtype_of_model, config=config, **ways)
            if not model.load_report.complete:
                raise PQMError(f"{path}: not a whole checkpoint: {'; '.join(model.load_report.notes)}")
            make_encoder = Encoder
        length = model.context if max_length is None else max_length
        if not 1 <= length <= model.context:
            raise PQMError(f"max_length: {length} was given; the model of {path} takes 1 to {model.context} tokens")
        return cls(model, make_encoder(tokenizer, template, length), max_tokens, prefix_tree)

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> list[Scores]:
        """Q-values of the steps of (question, steps) pairs, in the order given; packed inside.

        A step beyond the context gets None; so do all steps of a solution whose first one is. Raises PQMError for what
        is no such pair or gets no finite Q-value, naming its number, and RecordError for a text that holds the step
        token.
        """
        if isinstance(solutions, (str, bytes, Mapping)) or not isinstance(solutions, Iterable):
            raise PQMError(f"solutions are {show(solutions)}; give a list of (question, steps) pairs")
        records = [_checked(number, solution) for number, solution in enumerate(solutions)]
        return self.score_encoded([(r.prompt, e) for r, e in zip(records, self.encoder(records), strict=True)])

    def score_encoded(self, encoded: Sequence[tuple[str, Encoded | RecordError]]) -> list[Scores]:
        """The same for (question, what the encoder gave) pairs. Raises a RecordError that is among them."""
        scores: list[Scores] = [[] for _ in encoded]
        for found in self.scored(encoded):
            for i, own in found.items():
                scores[i] = own
        return scores

    def scored(
        self,
        encoded: Sequence[tuple[str, Encoded | RecordError]],
        needed: Callable[[int], bool] = lambda i: True,
        name: Callable[[int], str] = lambda i: f"solution {i}",
    ) -> Iterator[dict[int, Scores]]:
        """{number: scores} of the solutions of each batch when it is done. Batches are made of all, and those that hold
        no needed number are left out: the others are packed, and so rounded, as they would have been.

        Raises Diverged for Q-values that are not finite, before anything of their batch; `name` says whose they are.
        """
        solutions: dict[int, Encoded] = {}
        for i, (_, found) in enumerate(encoded):
            if isinstance(found, OverLong):
                yield {i: [None] * found.steps}
            elif isinstance(found, RecordError):
                raise found
            else:
                solutions[i] = found
        numbers = np.array(list(solutions), dtype=np.int64)
        lengths = np.array([len(s.input_ids) for s in solutions.values()], dtype=np.int64)
        budget = max(self.max_tokens, int(lengths.max(initial=0)))
        question = np.zeros(0, dtype=np.int64)
        units = Units.alone(numbers, lengths)
        if self.prefix_tree:
            order: dict[int, int] = {}  # by first appearance, which is that of the trees
            question = np.array([order.setdefault(question_number(q), len(order)) for q, _ in encoded], dtype=np.int64)
            units = Units.trees(numbers, question[numbers], lambda i: solutions[i].input_ids, budget)

        def make(members: np.ndarray) -> PackedBatch:
            pairs = [(int(i), _unlabelled(solutions[int(i)])) for i in members]
            return pack(pairs, question=question[members] if self.prefix_tree else None, labelled_only=False)

        loaded = load_steps(
            ([members] for members in units.in_order(budget) if any(needed(int(i)) for i in members)),
            make,
            self.model.planner(),
            workers=0,
            pin=self.model.device.type == "cuda",
        )
        # a GPU works on the next ones meanwhile; a CPU is done when it returns
        ahead = AHEAD if self.model.device.type == "cuda" else 0
        launched: deque[tuple[PackedBatch, torch.Tensor]] = deque()

        def read() -> dict[int, Scores]:
            batch, q = launched.popleft()
            parts = np.split(q.cpu().numpy(), batch.cu_steps[1:-1].tolist())
            for i, own in zip(batch.members, parts, strict=True):
                if not np.isfinite(own).all():
                    raise Diverged(f"{name(i)}: Q-values are not finite; check {self.model.config.name_or_path}")
            return {
                i: [*own.tolist(), *[None] * solutions[i].steps_cut]
                for i, own in zip(batch.members, parts, strict=True)
            }

        for [(batch, plan)] in loaded:
            launched.append((batch, self.model.scores(batch, plan)))
            if len(launched) > ahead:
                yield read()
        while launched:
            yield read()


def _checked(number: int, solution: Any) -> Record:
    """The record of a (question, steps) pair that somebody passed. Raises PQMError for anything else."""
    where = f"solution {number}"
    if not isinstance(solution, (tuple, list)) or len(solution) != 2:
        raise PQMError(f"{where}: {show(solution)} is no pair; give (question, steps), the steps as a list of texts")
    question, steps = solution
    if isinstance(steps, (str, bytes, Mapping, set, frozenset)) or not isinstance(steps, Iterable):
        raise PQMError(
            f"{where}: steps are {show(steps)} ({type(steps).__name__}); give a non-empty list of texts, one per step"
        )
    steps = list(steps)
    try:
        check_values({"the question": question} | {f"step {i}": step for i, step in enumerate(steps, 1)})
        return record(where, typed(question, "the question", str), steps, None, {})
    except FormatError as error:
        raise PQMError(f"{where}: {error}") from None


def _unlabelled(solution: Encoded) -> Trajectory:
    return Trajectory(
        solution.input_ids, solution.step_tokens, np.full(len(solution.step_tokens), np.nan, dtype=np.float32)
    )
