"""Packed batches give the values and gradients of one trajectory at a time, for every architecture."""

from itertools import chain

import pytest
import tiny
import torch
from packed_models import STEP_ROWS, assert_same, make_model, one_by_one, solutions, trajectories

from pqm_fast.data.pack import pack, pack_trees


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_packed_equals_one_by_one(tmp_path, architecture):
    """Values and every parameter's gradient, against transformers' own attention on one trajectory at a time."""
    model = make_model(tmp_path, architecture)
    assert model.step_rows_only == (architecture in STEP_ROWS)
    groups = solutions()
    expected = one_by_one(model, [t for group in groups for _, t in group])
    for step_rows_only in {False, model.step_rows_only}:
        model.step_rows_only = step_rows_only
        for parts, pad_to in (([groups], None), ([groups[:1], groups[1:]], 128)):
            plain = [pack(chain(*part), pad_to=pad_to) for part in parts]
            trees = [pack_trees(part, pad_to=pad_to) for part in parts]
            assert_same(model, plain, expected, f"plain, {step_rows_only=}, {pad_to=}")
            assert_same(model, trees, expected, f"trees, {step_rows_only=}, {pad_to=}")
    assert sum(b.num_tokens for b in trees) < 0.8 * sum(b.num_tokens for b in plain)
    assert any(len(b.step_tokens.unique()) < b.num_steps for b in trees)  # rows that several steps read


def test_trajectories_do_not_see_each_other(tmp_path):
    model = make_model(tmp_path, "qwen2").eval()
    first, second = trajectories(lengths=(20, 20))
    other = trajectories(seed=5, lengths=(20,))[0]
    with torch.no_grad():
        a = model.hidden(pack([(0, first), (1, second)]))
        b = model.hidden(pack([(0, other), (1, second)]))
    assert not torch.equal(a[:20], b[:20])
    assert torch.equal(a[20:], b[20:])
