"""The cached hidden states: against plain transformers, shared between kinds of labels, interrupted and damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_probes import config_in, killed_at_row, saved_model
from transformers import AutoModel

from pqm_fast.common.journal import Journal
from pqm_fast.errors import PQMError
from pqm_fast.probe.compute_states import Recorder
from pqm_fast.probe.frozen import FrozenDecoder


def states_of(config, layer):
    """The states of each step of the data, [S, D], and the decoder that computed them."""
    decoder = FrozenDecoder(config, [])
    probed = decoder.probed(config.data, outcomes=False)
    return probed.rows(layer)[torch.from_numpy(probed.row_of_step.copy())], decoder, probed


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_states_are_those_of_transformers(tmp_path, architecture):
    saved_model(tmp_path / "model", architecture)
    config = config_in(tmp_path)
    plain = AutoModel.from_pretrained(config.model).eval()
    for layer in (1, 3):
        states, decoder, probed = states_of(config, layer)
        expected = []
        for i in range(len(probed.dataset)):
            own = probed.dataset[i]
            ids = torch.tensor(own.input_ids[None].astype(np.int64))
            captured = []
            modules = plain.h if architecture == "gpt2" else plain.layers
            hook = modules[layer - 1].register_forward_hook(lambda _m, _i, out, to=captured: to.append(out))
            with torch.no_grad():
                plain(ids)
            hook.remove()
            output = captured[0][0] if isinstance(captured[0], tuple) else captured[0]
            rows = output[0][own.step_tokens.astype(np.int64)]
            expected.append(plain.ln_f(rows) if architecture == "gpt2" else rows)
        assert (decoder.norm is None) == (architecture == "gpt2")
        want = torch.cat(expected).detach()
        assert (states - want).abs().max() <= 1e-5 * want.abs().max()


def test_kinds_of_labels_share_states(tmp_path, monkeypatch):
    config = config_in(tmp_path)
    states, *_ = states_of(config, 3)
    rows = [json.loads(line) for line in Path(config.data[0]).read_text().splitlines()]
    flipped = tmp_path / "flipped.jsonl"
    flipped.write_text(
        "".join(json.dumps(r | {"id": f"x{r['id']}", "labels": [not y for y in r["labels"]]}) + "\n" for r in rows)
    )
    monkeypatch.setattr(Recorder, "run", lambda *_: pytest.fail("computed again"))
    again, _, probed = states_of(config_in(tmp_path, data=(str(flipped),)), 3)
    assert torch.equal(again, states)
    assert probed.dataset.columns["labels"][0] != rows[0]["labels"][0]


def test_a_new_layer_is_added_to_the_others(tmp_path, monkeypatch):
    config = config_in(tmp_path, layers=(1,))
    states_of(config, 1)
    folder = next((tmp_path / "cache" / "states").iterdir())
    before = (folder / "layer-01").stat().st_mtime_ns
    states_of(config_in(tmp_path, layers=(1, 2)), 2)
    assert sorted(p.name for p in folder.iterdir() if p.suffix == "") == ["layer-01", "layer-02", "steps"]
    assert (folder / "layer-01").stat().st_mtime_ns == before


def files_in(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def cached(tmp_path):
    return files_in(next((tmp_path / "cache" / "states").iterdir()))


def test_interrupted_states_resume_to_the_same_bytes(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    states_of(config_in(whole), 3)
    assert len(json.loads(cached(whole)["layer-03.json"])["parts"]) > 5  # batches
    config = config_in(cut, model=str(whole / "model"), data=(str(whole / "data.jsonl"),))

    real, calls = Journal.append, []
    for stop_at in (1, 3):  # twice, after so many more batches

        def append(journal, row, stop_at=stop_at):
            calls.append(row)
            if len(calls) == stop_at:
                calls.clear()
                raise KeyboardInterrupt
            return real(journal, row)

        monkeypatch.setattr(Journal, "append", append)
        with pytest.raises(KeyboardInterrupt):
            states_of(config, 3)
    # what a killed process may leave behind the last whole batch
    folder = next((cut / "cache" / "states").iterdir())
    assert not (folder / "layer-01").exists()  # nobody maps a file that still changes
    with open(folder / "layer-01.new", "ab") as file:
        file.write(b"half a batch")
    computed = []
    real_run = Recorder.run
    monkeypatch.setattr(Journal, "append", real)
    monkeypatch.setattr(Recorder, "run", lambda *a: computed.append(1) or real_run(*a))
    states_of(config, 3)
    assert cached(cut) == cached(whole)
    assert len(computed) == len(json.loads(cached(whole)["layer-03.json"])["parts"]) - 2


@pytest.mark.processes
def test_killed_while_computing_resumes_to_the_same_bytes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    states_of(config_in(whole), 3)
    config = config_in(cut, model=str(whole / "model"), data=(str(whole / "data.jsonl"),))
    killed_at_row(4, lambda: states_of(config, 3))
    states_of(config, 3)
    assert cached(cut) == cached(whole)


@pytest.mark.parametrize("name", ["layer-03", "layer-03.json", "steps"])
def test_damaged_states_are_computed_again(tmp_path, name):
    config = config_in(tmp_path)
    states_of(config, 3)
    before = cached(tmp_path)
    file = next((tmp_path / "cache" / "states").iterdir()) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    decoder = FrozenDecoder(config, notes := [])
    decoder.probed(config.data, outcomes=False)
    assert cached(tmp_path) == before
    assert any("not as it was written: the states are computed again" in note for note in notes)


def test_states_on_a_full_disk(tmp_path, file_size_limit):
    config = config_in(tmp_path)
    FrozenDecoder(config, []).probed(config.data, outcomes=False)  # the tokens
    shutil.rmtree(tmp_path / "cache" / "states")
    with file_size_limit(3000), pytest.raises(PQMError, match="hidden states cannot be stored"):
        states_of(config, 3)


def test_a_layer_that_the_model_does_not_have(tmp_path):
    with pytest.raises(PQMError, match=r"layers: 4 was given; .*model has 3 decoder layers"):
        FrozenDecoder(config_in(tmp_path, layers=(2, 4)), [])
    assert FrozenDecoder(config_in(tmp_path, layers=()), []).layers == (1, 2, 3)
