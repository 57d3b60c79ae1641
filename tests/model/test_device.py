"""The dtype that `auto` picks on each device."""

import pytest
import tiny
import torch

from pqm_fast.errors import PQMError
from pqm_fast.model.device import bfloat16_gain, pick_dtype


@pytest.mark.parametrize(("gain", "expected"), [(0.2, torch.float32), (1.4, torch.float32), (1.5, torch.bfloat16)])
def test_auto_takes_bfloat16_on_a_cpu_that_is_faster_in_it(tmp_path, monkeypatch, gain, expected):
    measured = []
    monkeypatch.setattr("pqm_fast.model.device.bfloat16_gain", lambda *sizes: measured.append(sizes) or gain)
    wide = str(tiny.model_folder(tmp_path / "wide", hidden_size=256, intermediate_size=300))
    cpu, notes = torch.device("cpu"), []
    assert pick_dtype("auto", cpu, wide, notes) == expected
    name = str(expected).removeprefix("torch.")
    assert notes == [f"dtype {name}: this CPU multiplies {gain} times as fast in bfloat16 as in float32"]
    assert measured == [(256, 300)]
    assert pick_dtype("auto", cpu, str(tiny.model_folder(tmp_path / "gpt2", "gpt2", n_embd=512)), notes) == expected
    assert measured[1:] == [(512, 2048)]


def test_a_dtype_that_needs_no_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr("pqm_fast.model.device.bfloat16_gain", lambda *_: pytest.fail("measured"))
    cpu, narrow, notes = torch.device("cpu"), str(tiny.model_folder(tmp_path / "narrow", hidden_size=248)), []
    assert pick_dtype("auto", cpu, narrow, notes) == torch.float32
    assert pick_dtype("bfloat16", cpu, "nowhere", notes) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cuda"), "nowhere", notes) == torch.bfloat16
    assert notes == []


def test_a_gain_is_measured_once_for_each_size(monkeypatch):
    """The best of several tries counts; the clock is simulated."""
    bfloat16_gain.cache_clear()
    ends = [9.0, 6.0, 3.0, 5.0, 9.0, 1.0, 2.0, 1.5]
    ticks = iter([tick for end in ends for tick in (0.0, end)])
    monkeypatch.setattr("pqm_fast.model.device.time.perf_counter", lambda: next(ticks))
    assert [bfloat16_gain(8, 4) for _ in range(2)] == [3.0, 3.0]
    bfloat16_gain.cache_clear()


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(PQMError, match="dtype: 'float8' was given; give auto, float32, bfloat16"):
        pick_dtype("float8", torch.device("cpu"), "m")
