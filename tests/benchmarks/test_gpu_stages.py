"""What the stages of `python -m pqm_benchmarks gpu` compare, measure and tell."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pqm_benchmarks.gpu import check, counters, profile, speed, tiles
from pqm_benchmarks.score.ways.ladder import WAYS as SCORE_WAYS
from pqm_benchmarks.shared.shapes import ALL_SHAPES
from pqm_benchmarks.train.run import TrainBench, measure
from pqm_benchmarks.train.ways.ladder import WAYS
from pqm_kernels.fused_step_loss import backward, forward
from torch.autograd import DeviceType

from pqm_fast.errors import PQMError

CPU = torch.device("cpu")


# ---- check ----------------------------------------------------------------------------------------------------------


def test_the_op_and_attention_are_held_against_float64():
    for compare in (check._op, check._attention_in_trees):
        for what, ours, plain, exact in compare(CPU, torch.float32):
            assert exact.dtype == torch.float64, what
            assert ours.dtype == plain.dtype == torch.float32, what
            assert check._error(ours, exact) <= 1e-5, what


def test_what_is_wrong_is_told(job, monkeypatch, stored):
    def comparison(error):
        exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
        yield "value", exact * (1 + error), exact * 1.001, exact

    found = {"_op": 0.0019, "_siblings": 0, "_adamw": 0.0021, "_attention": 0, "_attention_in_trees": float("nan")}
    for name, error in found.items():
        monkeypatch.setattr(check, name, lambda device, dtype, error=error: comparison(error))
    with pytest.raises(PQMError) as raised:
        check.check(job)
    assert str(raised.value) == (
        "AdamW, value: error 0.0021, allowed 0.002; attention in trees, value: error nan, allowed 0.002"
    )
    figures = stored()["figures"]
    assert figures["headline"] == "on a CPU; 3 of 5 results right"
    assert figures["environment"].keys() >= {"device", "versions", "commit"}
    assert figures["rates"].keys() >= {"copy_gb_s", "matrix_tflops"}


# ---- sizes that are given -------------------------------------------------------------------------------------------


def test_settings_are_some_that_the_ways_have():
    for shape, settings in speed.TRAIN.items():
        assert shape in ALL_SHAPES
        for name, setting in settings.items():
            kinds = {frozenset(known) for family in WAYS[name].families for known in family}
            assert frozenset(setting) in kinds, (shape, name)
    for name, setting in speed.SCORE.items():
        assert any(setting in family for family in SCORE_WAYS[name].families)


@pytest.mark.usefixtures("short")
def test_a_given_setting_is_timed_and_none_is_looked_for(tmp_path, job, monkeypatch, stored):
    monkeypatch.setattr(speed, "TRAIN", {"tiny": {name: speed.TRAIN["tiny"][name] for name in ("tree", "packed")}})
    way = WAYS["packed"]

    def wrong(*arguments):
        step = way.build(*arguments)
        with torch.no_grad():
            step.model.head.bias += 10.0
        return step

    speed.train_half(job)
    results = json.loads((tmp_path / "train-0.5B.json").read_text())
    assert [(r["way"], r["setting"], r["tried"]) for r in results["records"]] == [
        ("packed", {"micro_batches": 1, "recompute": 0.0}, []), ("tree", {"micro_batches": 1, "recompute": 0.0}, []),
    ]  # fmt: skip
    assert results["records"][0]["optimizer_steps"] == 1
    assert stored()["figures"]["headline"].startswith(f"{ALL_SHAPES['tiny'].source}, trajectories/s: plain packing ")
    assert stored()["figures"]["left_out"] == {}
    monkeypatch.setitem(WAYS, "packed", replace(way, build=wrong))
    with pytest.raises(PQMError, match=r"^packed: its loss is .*, where .* was expected; it is not timed"):
        speed.train_half(job)
    assert stored()["figures"]["left_out"].keys() == {"packed, tiny"}
    monkeypatch.setitem(WAYS, "tree", replace(WAYS["tree"], build=lambda *arguments: 1 / 0))
    with pytest.raises(PQMError, match=r"^tree: ZeroDivisionError"):
        speed.train_half(job)


def test_settings_need_passes_of_one_step():
    with pytest.raises(PQMError, match="steps: must be 1 where settings are given, found 3"):
        measure(TrainBench(device="cpu"), lambda _: None, {})


def test_a_case_without_ours_is_a_failure(job, monkeypatch, stored):
    def record(name, passed="forward+backward"):
        return {"implementation": name, "size": "tiny", "width": 64, "pass": passed}

    results = {"copy_gb_s": 3.0, "left_out": {"tiny, D 64": "out of memory"}}
    results["records"] = [record("published"), record("eager", "forward")]

    def measure(config, store):
        store(results)
        return results

    monkeypatch.setattr(speed.kernel_bench, "measure", measure)
    with pytest.raises(PQMError, match=r"^eager was not measured: tiny, D 64; see what was left out$"):
        speed.kernels(job)
    assert stored()["figures"]["left_out"] == results["left_out"]
    results["records"].append(record("eager"))
    speed.kernels(job)


# ---- second looks ---------------------------------------------------------------------------------------------------


def test_shares_of_a_profile_by_hand():
    """Between 10 and 20 us of 40 nothing runs; two kernels overlap for 5 us."""
    found = profile.figures(
        [("gemm", 0.0, 10.0), ("flash_fwd_kernel", 20.0, 30.0), ("gemm", 25.0, 35.0), ("copy", 35.0, 40.0)]
    )
    assert found == {
        "wall_us": 40.0, "idle": pytest.approx(0.25), "attention": pytest.approx(10 / 35), "kernels": 4,
        "longest": [["gemm", 20 / 35], ["flash_fwd_kernel", 10 / 35], ["copy", 5 / 35]],
    }  # fmt: skip
    with pytest.raises(PQMError, match="seen no kernel"):
        profile.figures([])


def test_only_what_runs_on_the_gpu_is_counted_there():
    def event(name, kind, start, end, children=(), annotation=False):
        own = {"time_range": SimpleNamespace(start=start, end=end), "cpu_children": children}
        return SimpleNamespace(name=name, device_type=kind, is_user_annotation=annotation, **own)

    events = [event("mm", DeviceType.CPU, 0, 9), event("linear", DeviceType.CPU, 0, 9, [1])]
    events.append(event("gemm", DeviceType.CUDA, 4, 8))
    # what PyTorch names there spans the gaps between kernels
    events.append(event("Optimizer.step#AdamW.step", DeviceType.CUDA, 0, 50, annotation=True))
    assert profile.spans(events, on_gpu=True) == [("gemm", 4, 8)]
    assert profile.spans(events, on_gpu=False) == [("mm", 0, 9)]


def test_other_tiles_are_put_back(job, monkeypatch, stored):
    before = {module: dict(vars(module)) for module in (forward, backward)}
    seen = {}

    def times(inputs, device):
        now = [(m, name) for m in before for name, value in before[m].items() if vars(m)[name] is not value]
        seen[len(seen)] = {name for _, name in now}
        if len(seen) == 3:
            raise RuntimeError("out of shared memory")
        return {"forward": 1.0, "forward+backward": 4.0 - len(seen) / 2}

    monkeypatch.setattr(tiles, "_times", times)
    tiles.tiles(job)
    changed = [{name for own in changes.values() for name in own} for changes in tiles.VARIANTS.values()]
    assert list(seen.values()) == changed
    assert all(vars(module)[name] is value for module, own in before.items() for name, value in own.items())
    figures = stored()["figures"]
    variants = list(tiles.VARIANTS)
    assert figures["left_out"] == {f"tiny, D 64, {variants[2]}": "RuntimeError: out of shared memory"}
    assert figures["headline"] == f"5 cases, best tiny, D 64, {variants[-1]} (3.50x)"


def test_variants_change_constants_that_the_kernels_have():
    for changes in tiles.VARIANTS.values():
        for module, own in changes.items():
            for name, value in own.items():
                assert type(getattr(module, name)) is type(value)
                assert getattr(module, name) != value


def test_counters_are_read_from_what_ncu_prints():
    head = '"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"'
    lines = [
        "==PROF== Connected to process 7", head,
        '"0","7","forward_kernel(...)","GPU Speed Of Light","DRAM Throughput","%","91.20"',
        '"0","7","forward_kernel(...)","GPU Speed Of Light","Duration","us","180.5"',
        '"0","7","forward_kernel(...)","GPU Speed Of Light","SM Frequency","GHz","1.9"',
        '"1","7","rows_kernel","Launch Statistics","Registers Per Thread","register/thread","96"',
    ]  # fmt: skip
    assert counters.read("\n".join(lines)) == {
        "forward_kernel": {"DRAM Throughput": "91.20 %", "Duration": "180.5 us"},
        "rows_kernel": {"Registers Per Thread": "96 register/thread"},
    }
    assert counters.read("==ERROR== no permission") == {}
    for name, kernel in (("forward_kernel", forward), ("rows_kernel", backward)):
        assert name in counters.KERNELS
        assert hasattr(kernel, name)
