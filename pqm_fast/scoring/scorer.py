"""Scorer: Q-values for the steps of solutions, from Python."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from pqm_fast.common.options import Attention, DType
from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.checks import show
from pqm_fast.data.encode import Encoded, Encoder, OverLong
from pqm_fast.data.encode_text import TextEncoder, TextLayout
from pqm_fast.data.loader import load_steps
from pqm_fast.data.pack import PackedBatch, pack
from pqm_fast.data.questions import question_number
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import Diverged, PQMError, RecordError
from pqm_fast.model.device import pick_device, pick_dtype
from pqm_fast.model.loading import load_config
from pqm_fast.model.recipe import CONFIG_KEY, Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.model.tokenizer import load_tokenizer
from pqm_fast.scoring.solutions import records_of
from pqm_fast.scoring.stored import Scores
from pqm_fast.scoring.third_party import ThirdPartyPRM
from pqm_fast.scoring.third_party_heads import load_third_party

BATCHES_AHEAD = 8  # launched on a GPU before the scores of the first of them are read back


class Packing(NamedTuple):
    """How solutions are packed: their units, the tokens of a batch, and equal numbers [N] int64 for solutions of one
    question, if these share tokens."""

    units: PackingUnits
    budget: int
    question: np.ndarray | None


class Scorer:
    """Scores the steps of solutions with a trained model, and with the template that the model was trained with.

    Args:
        model: in any dtype, on its device.
        encoder: makes tokens of a question and its steps.
        max_tokens: tokens of one forward pass.
        prefix_tree: compute tokens that solutions of one question share only once; the scores are the same up to
            rounding.
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
        third_party: ThirdPartyPRM | None = None,
    ) -> "Scorer":
        """Loads a scorer from a folder or hub id.

        Args:
            path: a pqm-fast checkpoint, or the model that `third_party` describes.
            device: cpu or cuda; auto: cuda if there is a GPU.
            dtype: of weights and computation; auto: bfloat16 on a GPU, and on a CPU on which it is measured to be
                clearly faster; otherwise float32.
            max_length: longest solution in tokens (default: the model's context).
            max_tokens: tokens of one forward pass.
            prefix_tree: compute tokens that solutions of one question share only once.
            attention: how packed tokens attend; auto: flash-attn on a GPU if it is installed, else PyTorch's kernels.
            third_party: how a third-party PRM is read, such as `ThirdPartyPRM("trl")`.

        Raises:
            PQMError: `path` is neither a pqm-fast checkpoint nor the model that `third_party` describes, or an option
                cannot be used with it.
        """
        _check_arguments(path, third_party, max_length, max_tokens)
        path = os.fspath(path)
        target = pick_device(device)
        config = load_config(path)
        tokenizer = load_tokenizer(path)
        placement: dict[str, Any] = {"device": target, "attention": attention}
        make_encoder: Callable[[int], Encoder | TextEncoder]
        if third_party is not None and third_party.is_set:
            model, layout = _third_party_model(path, config, tokenizer, third_party, dtype, **placement)
            make_encoder = partial(TextEncoder, tokenizer, layout)
        else:
            template = Recipe.from_config(config, path).template
            dtype_of_model = pick_dtype(dtype, target, path)
            model = StepQModel.from_pretrained(path, dtype=dtype_of_model, config=config, **placement)
            if not model.load_report.complete:
                raise PQMError(f"{path}: not a whole checkpoint: {'; '.join(model.load_report.notes)}")
            make_encoder = partial(Encoder, tokenizer, template)
        length = model.context if max_length is None else max_length
        if not 1 <= length <= model.context:
            raise PQMError(f"max_length: {length} was given; the model of {path} takes 1 to {model.context} tokens")
        return cls(model, make_encoder(length), max_tokens, prefix_tree)

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]], *, lenient: bool = False) -> list[Scores]:
        """Q-values of the steps of (question, steps) pairs, in the order of the pairs.

        Args:
            solutions: each a question and the texts of one or more steps.
            lenient: for solutions that a policy has written and nobody has read: instead of a RecordError, all steps
                of a solution that holds the step token get None.

        Returns:
            A list for each solution, with a float for each step. A step beyond the context gets None; if the first step
            does not fit, all steps of the solution do.

        Raises:
            PQMError: something is not such a pair, or a Q-value is not finite; the message names the solution.
            RecordError: a text holds the step token.
        """
        records = records_of(solutions)
        encoded = self.encoder(records)
        scores: list[Scores] = [[None] * len(record.steps) for record in records]
        usable = [i for i, result in enumerate(encoded) if isinstance(result, Encoded) or not lenient]
        for i, own in zip(usable, self.score_encoded([(records[i].prompt, encoded[i]) for i in usable]), strict=True):
            scores[i] = own
        return scores

    def score_encoded(self, encoded: Sequence[tuple[str, Encoded | RecordError]]) -> list[Scores]:
        """Like `score`, for (question, result of the encoder) pairs. Raises a RecordError that is among the results,
        unless it is an `OverLong`."""
        scores: list[Scores] = [[] for _ in encoded]
        for batch_scores in self.score_batches(encoded):
            for number, solution_scores in batch_scores.items():
                scores[number] = solution_scores
        return scores

    def score_batches(
        self,
        encoded: Sequence[tuple[str, Encoded | RecordError]],
        needed: Callable[[int], bool] = lambda number: True,
        name: Callable[[int], str] = lambda number: f"solution {number}",
    ) -> Iterator[dict[int, Scores]]:
        """{number of the solution: its scores}, batch by batch.

        Batches are planned over all solutions, and those without a `needed` number are left out: the others are then
        packed, and so rounded, as if nothing had been left out. Raises Diverged for Q-values that are not finite,
        before it yields a score of their batch; `name` says whose they are.
        """
        solutions: dict[int, Encoded] = {}
        for number, (_, result) in enumerate(encoded):
            if isinstance(result, OverLong):
                yield {number: [None] * result.steps}
            elif isinstance(result, RecordError):
                raise result
            else:
                solutions[number] = result
        units, budget, question = self.packing(encoded)

        def make(members: np.ndarray) -> PackedBatch:
            pairs = [(number, _unlabelled(solutions[number])) for number in members.tolist()]
            own = None if question is None else question[members]
            return pack(pairs, question=own, compare=False, labelled_only=False)

        planned = (members for members in units.batches_in_order(budget) if any(map(needed, members.tolist())))
        for batch, q in self._computed(planned, make):
            by_member = np.split(q, batch.cu_steps[1:-1].tolist())
            for number, member_q in zip(batch.members, by_member, strict=True):
                if not np.isfinite(member_q).all():
                    raise Diverged(f"{name(number)}: Q-values are not finite; check {self.model.config.name_or_path}")
            yield {
                number: [*member_q.tolist(), *[None] * solutions[number].steps_cut]
                for number, member_q in zip(batch.members, by_member, strict=True)
            }

    def packing(self, encoded: Sequence[tuple[str, Encoded | RecordError]]) -> Packing:
        """How the solutions that are encoded are packed, by their numbers."""
        solutions = {number: result for number, (_, result) in enumerate(encoded) if isinstance(result, Encoded)}
        numbers = np.array(list(solutions), dtype=np.int64)
        lengths = np.array([len(solution.input_ids) for solution in solutions.values()], dtype=np.int64)
        budget = max(self.max_tokens, int(lengths.max(initial=0)))
        if not self.prefix_tree:
            return Packing(PackingUnits.single(numbers, lengths), budget, None)
        question = _number_by_first_appearance([question_number(text) for text, _ in encoded])
        units = PackingUnits.questions(
            numbers, question[numbers], lambda number: solutions[number].input_ids, budget, share=True
        )
        return Packing(units, budget, question)

    def _computed(
        self, planned: Iterable[np.ndarray], make: Callable[[np.ndarray], PackedBatch]
    ) -> Iterator[tuple[PackedBatch, np.ndarray]]:
        """Each batch with its Q-values [S] float32. A GPU is already computing the next batches when the Q-values of
        one are read back."""
        on_gpu = self.model.device.type == "cuda"
        loaded = load_steps(([members] for members in planned), make, self.model.planner(), workers=0, pin=on_gpu)
        launched: deque[tuple[PackedBatch, torch.Tensor]] = deque()

        def oldest() -> tuple[PackedBatch, np.ndarray]:
            batch, q = launched.popleft()
            return batch, q.cpu().numpy()

        for [(batch, plan)] in loaded:
            launched.append((batch, self.model.scores(batch, plan)))
            if len(launched) > (BATCHES_AHEAD if on_gpu else 0):
                yield oldest()
        while launched:
            yield oldest()


def _check_arguments(path: Any, third_party: Any, max_length: Any, max_tokens: Any) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise PQMError(f"model: {show(path)} ({type(path).__name__}) was given; name a folder or a hub id")
    if not isinstance(third_party, (ThirdPartyPRM, type(None))):
        raise PQMError(
            f"third_party: {show(third_party)} was given; pass ThirdPartyPRM({show(third_party)}) or the like"
        )
    for name, number in (("max_length", max_length), ("max_tokens", max_tokens)):
        is_whole = isinstance(number, Integral) and not isinstance(number, bool)
        if not is_whole and (number is not None or name == "max_tokens"):
            raise PQMError(f"{name}: {show(number)} ({type(number).__name__}) was given; pass a whole number")
    if max_tokens < 1:
        raise PQMError(f"max_tokens: {max_tokens} was given; it must be at least 1")


def _third_party_model(
    path: str,
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    prm: ThirdPartyPRM,
    dtype: DType,
    device: torch.device,
    attention: Attention,
) -> tuple[StepQModel, TextLayout]:
    """The model on its device, and how its authors write a solution."""
    if hasattr(config, CONFIG_KEY):
        raise PQMError(f"{path}: a pqm-fast checkpoint stores its head and template itself; leave out --preset")
    spec = prm.resolve()
    layout = spec.layout_for(tokenizer)
    classifier = load_third_party(path, config, pick_dtype(dtype, device, path), spec, tokenizer)
    model = StepQModel.of(classifier, path, device=device, attention=attention)
    model.check_vocabulary(tokenizer)
    return model, layout


def _number_by_first_appearance(values: Sequence[int]) -> np.ndarray:
    """[N] int64: equal numbers for equal values, counted from 0 in the order in which the values first appear."""
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def _unlabelled(solution: Encoded) -> Trajectory:
    no_labels = np.full(len(solution.step_tokens), np.nan, dtype=np.float32)
    return Trajectory(solution.input_ids, solution.step_tokens, no_labels)
