"""Checks that packing leaves the hidden states of an architecture as they are."""

from contextlib import suppress

import numpy as np
import torch

from pqm_fast.data.pack import PackedBatch, pack, pack_trees
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError
from pqm_fast.model.attention.packed import PACKED_ATTENTION
from pqm_fast.model.packed_decoder import PackedDecoder

FLOAT32_TOLERANCE = 1e-3  # relative error
# In half precision: at least this, or three times the error between two implementations of transformers
HALF_TOLERANCE, HALF_ERROR_RATIO = 5e-2, 3


@torch.no_grad()
def check_packing(decoder: PackedDecoder) -> None:
    """Compares packed hidden states with those of each trajectory run alone through transformers' own attention.

    It packs trajectories end to end and in prefix trees, with every row of the last layer and, where the decoder
    supports that, with step rows only. Without this check, an architecture that carries state across tokens by other
    means than attention (Mamba, for example), or that packed attention does not support, would silently train on
    mixed-up trajectories.

    Raises PQMError if the hidden states differ or are not finite.
    """
    numbered = list(enumerate(_random_trajectories(vocabulary=decoder.embedding.shape[0])))
    pad_to = None if decoder.device.type == "cpu" else 256  # as in training
    batches = {
        "packed trajectories": pack(numbered, pad_to=pad_to, labelled_only=False),
        "prefix trees": pack_trees([numbered[:2], numbered[2:]], pad_to=pad_to, labelled_only=False),
    }
    trajectories = [trajectory for _, trajectory in numbered]
    tolerance = FLOAT32_TOLERANCE
    training = decoder.training
    decoder.eval()
    try:
        packed = {
            (name, step_rows_only): _packed_steps(decoder, batch, step_rows_only)
            for name, batch in batches.items()
            for step_rows_only in ((False, True) if decoder.step_rows_only else (False,))
        }
        expected = _hidden_alone(decoder, trajectories, implementation="eager")
        if decoder.classifier.dtype != torch.float32:  # allow for rounding, measured between two of transformers' own
            with suppress(ValueError):  # Gemma 2 has no sdpa
                rounded = _hidden_alone(decoder, trajectories, implementation="sdpa")
                tolerance = HALF_ERROR_RATIO * _relative_error(torch.cat(rounded), torch.cat(expected))
            tolerance = max(HALF_TOLERANCE, tolerance)
    finally:
        decoder.classifier.set_attn_implementation(PACKED_ATTENTION)
        decoder.train(training)
    if not all(hidden.isfinite().all() for hidden in expected):
        raise PQMError("the hidden states are not finite: a weight is NaN or infinite; fetch or train the model again")
    for (name, step_rows_only), hidden in packed.items():
        expected_steps = [
            expected[member][torch.as_tensor(trajectories[member].step_tokens)] for member in batches[name].members
        ]
        error = _relative_error(hidden, torch.cat(expected_steps))
        if not error <= tolerance:
            raise PQMError(
                f"{decoder.config.model_type}: {name} do not give the hidden states that trajectories give alone "
                f"(relative error {error:.2g}{', last layer at step rows only' if step_rows_only else ''}); "
                "this architecture is not supported"
            )


def _random_trajectories(vocabulary: int) -> list[Trajectory]:
    """Three trajectories without labels, of which the first two share a prefix. All tokens but the second are steps."""
    tokens = torch.randint(vocabulary, (13,), generator=torch.Generator().manual_seed(0)).numpy()
    trajectories = []
    for input_ids in (tokens[:5], tokens[[0, 1, 2, 5, 6, 7, 8, 9, 10]], tokens[11:]):
        step_tokens = np.delete(np.arange(len(input_ids), dtype=np.int32), 1)
        labels = np.full(len(step_tokens), np.nan, dtype=np.float32)
        trajectories.append(Trajectory(input_ids, step_tokens, labels))
    return trajectories


def _packed_steps(decoder: PackedDecoder, batch: PackedBatch, step_rows_only: bool) -> torch.Tensor:
    """The hidden states of the steps of a batch, [S, D] float32."""
    plan = decoder.planner(step_rows_only=step_rows_only)(batch).to(decoder.device)
    return decoder.hidden(batch.to(decoder.device), plan)[plan.head.step_index].float()


def _hidden_alone(decoder: PackedDecoder, trajectories: list[Trajectory], *, implementation: str) -> list[torch.Tensor]:
    """The hidden states of each trajectory, [L, D] float32, through an attention implementation of transformers."""
    decoder.classifier.set_attn_implementation(implementation)
    ids = [torch.as_tensor(t.input_ids, device=decoder.device)[None].long() for t in trajectories]
    return [decoder.backbone(input_ids=i, use_cache=False).last_hidden_state[0].float() for i in ids]


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Computes in float64, because in float32 the norm of finite values may be infinite. 0 if both are 0."""
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0
