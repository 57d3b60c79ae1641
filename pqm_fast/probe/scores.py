"""Q-values that a head gives to the steps of a data set, from the cached states."""

import numpy as np
import torch

from pqm_fast.probe.frozen import FrozenDecoder, Probed
from pqm_fast.probe.heads import Head
from pqm_fast.probe.norm import normed
from pqm_fast.scoring.stored import Scores

ROWS_AT_ONCE = 65536


@torch.no_grad()
def step_scores(probed: Probed, decoder: FrozenDecoder, head: Head) -> dict[str, Scores]:
    """{record id: its Q-values, None for a step that was cut off} of every trajectory of a data set."""
    weight = torch.from_numpy(head.weight.copy())
    parts = []
    for rows in probed.rows(head.spec.layer).split(ROWS_AT_ONCE):
        parts.append(normed(rows, decoder.norm) @ weight + head.bias)
    q = torch.cat(parts).numpy()[probed.row_of_step]
    dataset = probed.dataset
    by_trajectory = np.split(q, dataset.columns["steps_end"][:-1])
    return {
        dataset.name(i): [*own.tolist(), *[None] * int(dataset.steps_cut[i])] for i, own in enumerate(by_trajectory)
    }
