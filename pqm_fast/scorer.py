"""Q-values for solutions from Python: `Scorer`, and `score_records` for whole files."""

import math
import os
from collections.abc import Container, Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from pqm_fast.data.dataset import CHUNK, chunks, question_number
from pqm_fast.data.encode import Encoded, Encoder
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.loader import load_steps
from pqm_fast.data.pack import PackedBatch, Trajectory, Units, pack
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.model import Recipe, StepQModel
from pqm_fast.options import Attention, DType
from pqm_fast.pretrained import load_tokenizer, pick_device, pick_dtype
from pqm_fast.score import ScoringOptions

Scores = list[float | None]


class Scorer:
    """Scores steps with a trained checkpoint, under the template that the checkpoint was trained with.

    `prefix_tree`: what solutions of one question share is computed once; the scores are the same up to rounding.
    """

    def __init__(self, model: StepQModel, encoder: Encoder, max_tokens: int = 16384, prefix_tree: bool = False):
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
    ) -> "Scorer":
        """`dtype` of weights and computation; auto: bfloat16 on a GPU, and on a CPU that is measured to be clearly
        faster in it, otherwise float32. `max_length`: longest solution in tokens (default: the model's context);
        `max_tokens`: of one forward pass.

        Raises PQMError if `path` is not a checkpoint of pqm-fast, and for options that it cannot be used with.
        """
        where = pick_device(device)
        if max_tokens < 1:
            raise PQMError(f"max_tokens: {max_tokens} was given; it must be at least 1")
        notes: list[str] = []
        model = StepQModel.from_pretrained(
            os.fspath(path),
            dtype=pick_dtype(dtype, where, os.fspath(path)),
            device=where,
            attention=attention,
            prefix_tree=prefix_tree,
            notes=notes,
        )
        recipe = Recipe.from_config(model.config, os.fspath(path))
        if notes:  # a new head or random weights
            raise PQMError(f"{path}: not a whole checkpoint: {'; '.join(notes)}")
        length = model.context if max_length is None else max_length
        if not 1 <= length <= model.context:
            raise PQMError(f"max_length: {length} was given; the model of {path} takes 1 to {model.context} tokens")
        encoder = Encoder(load_tokenizer(os.fspath(path)), recipe.template, length)
        return cls(model, encoder, max_tokens, prefix_tree)

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> list[Scores]:
        """Q-values of the steps of (question, steps) pairs, in the order given; packed inside.

        A step beyond the context gets None. Raises RecordError if a question alone is too long or a text holds the
        step token.
        """
        records = [Record(f"solution {i}", q, list(steps)) for i, (q, steps) in enumerate(solutions)]
        encoded = self.encoder(records)
        for found in encoded:
            if isinstance(found, RecordError):
                raise found
        return self.score_encoded(
            [(r.prompt, e) for r, e in zip(records, encoded, strict=True) if isinstance(e, Encoded)]
        )

    @torch.no_grad()
    def score_encoded(self, encoded: Sequence[tuple[str, Encoded]]) -> list[Scores]:
        """The same for (question, what the encoder gave) pairs."""
        solutions = [solution for _, solution in encoded]
        scores: list[Scores] = [[] for _ in solutions]
        lengths = np.array([len(s.input_ids) for s in solutions], dtype=np.int64)
        budget = max(self.max_tokens, int(lengths.max(initial=0)))
        everything, question = np.arange(len(solutions)), None
        units = Units.alone(everything, lengths)
        if self.prefix_tree:
            question = np.array([question_number(q) for q, _ in encoded], dtype=np.uint64)
            units = Units.trees(everything, question, lambda i: solutions[i].input_ids, budget)

        def make(members: np.ndarray) -> PackedBatch:
            pairs = [(int(i), _unlabelled(solutions[i])) for i in members]
            return pack(pairs, question=None if question is None else question[members], labelled_only=False)

        loaded = load_steps(
            ([members] for members in units.batches(budget, shuffle=False)),
            make,
            self.model.planner(prefix_tree=self.prefix_tree),
            workers=0,
            pin=self.model.device.type == "cuda",
        )
        # all are launched before any is read: a GPU works on one while the next ones are packed
        launched = [(batch, self.model.scores(batch, packing)) for [(batch, packing)] in loaded]
        for batch, q in launched:
            for i, own in zip(batch.members, np.split(q.cpu().numpy(), batch.cu_steps[1:-1].tolist()), strict=True):
                scores[i] = [*own.tolist(), *[None] * solutions[i].steps_cut]
        return scores


def _unlabelled(solution: Encoded) -> Trajectory:
    return Trajectory(
        solution.input_ids, solution.step_index, np.full(len(solution.step_index), np.nan, dtype=np.float32)
    )


def score_records(
    model: str,
    data: Sequence[str],
    read: ReadOptions,
    options: ScoringOptions,
    skipped: SkipSummary,
    done: Container[str] = (),
) -> Iterator[tuple[Record, Scores]]:
    """Records of files with the scores of their steps, in order, without those whose id is in `done`.

    All records are read once before the model is loaded: a bad one shows at once, and the bar knows the total.
    Raises PQMError for what cannot be read or scored; with `read.skip_bad` such records are counted in `skipped`.
    """
    names = ", ".join(data)
    total = sum(1 for _ in read_all(data, read, skipped))
    scorer = Scorer.from_pretrained(
        model,
        device=options.device,
        dtype=options.dtype,
        max_length=options.max_length,
        max_tokens=options.max_tokens,
        prefix_tree=options.prefix_tree,
        attention=options.attention,
    )
    usable = False
    with tqdm(total=total, unit="record", disable=not options.progress) as bar:
        for records in chunks(read_all(data, read, SkipSummary()), CHUNK):
            kept: list[tuple[Record, Encoded]] = []
            for record, encoded in zip(records, scorer.encoder(records), strict=True):
                if isinstance(encoded, Encoded):
                    kept.append((record, encoded))
                elif read.skip_bad:
                    skipped.add(encoded.kind, str(encoded))
                else:
                    raise PQMError(f"{names}: {encoded}") from encoded
            usable = usable or bool(kept)
            # a chunk that was interrupted is packed, and so rounded, as it would have been
            if any(record.id not in done for record, _ in kept):
                scores = scorer.score_encoded([(record.prompt, encoded) for record, encoded in kept])
                found = [(record, own) for (record, _), own in zip(kept, scores, strict=True)]
                for record, own in found:
                    if any(q is not None and not math.isfinite(q) for q in own):
                        raise PQMError(f"{names}: record {record.id}: Q-values are not finite; check {model}")
                yield from (pair for pair in found if pair[0].id not in done)
            bar.update(len(records))
    if not usable:
        raise PQMError(f"{names}: no usable record. {skipped}")
