"""The check of an architecture accepts what packs correctly and refuses everything else."""

from dataclasses import replace

import pytest
import tiny
import torch
from packed_models import make_model

from pqm_fast.errors import PQMError
from pqm_fast.model import attention, last_layer
from pqm_fast.model.check_packing import check_packing
from pqm_fast.model.packed_decoder import PackedDecoder
from pqm_fast.model.step_q_model import StepQModel


def test_half_precision_passes_the_check(tmp_path):
    for architecture in tiny.ARCHITECTURES:
        folder = tiny.model_folder(tmp_path / architecture, architecture)
        assert StepQModel.from_pretrained(str(folder), dtype=torch.bfloat16).classifier.dtype == torch.bfloat16


def one_sequence(batch):
    total = (sum(batch.lengths),)
    return batch if batch.paths is not None else replace(batch, lengths=total, path_lengths=total)


def another_path(batch):
    return batch if batch.paths is None else replace(batch, paths=batch.paths.roll(1))


@pytest.mark.parametrize(("damage", "layout"), [(one_sequence, "packed trajectories"), (another_path, "prefix trees")])
def test_trajectories_that_see_each_other_are_detected(tmp_path, monkeypatch, damage, layout):
    model = make_model(tmp_path)
    check_packing(model)
    right = attention.Planner.__call__
    monkeypatch.setattr(attention.Planner, "__call__", lambda self, batch: right(self, damage(batch)))
    with pytest.raises(PQMError, match=rf"{layout} do not give the hidden states .*not supported"):
        check_packing(model)


def test_an_error_in_the_last_layer_is_detected(tmp_path, monkeypatch):
    model = make_model(tmp_path)
    check_packing(model)
    monkeypatch.setattr(last_layer, "apply_rotary_pos_emb", lambda query, key, cos, sin: (query, key))
    with pytest.raises(PQMError, match=r"last layer at step rows only.*not supported"):
        check_packing(model)


def test_hidden_states_that_are_no_numbers_are_detected(tmp_path, monkeypatch):
    model, hidden = make_model(tmp_path), PackedDecoder.hidden
    monkeypatch.setattr(PackedDecoder, "hidden", lambda *given: hidden(*given) * torch.nan)
    with pytest.raises(PQMError, match="relative error nan"):
        check_packing(model)
