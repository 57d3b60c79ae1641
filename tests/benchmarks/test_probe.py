"""`python -m pqm_benchmarks probe` at a tiny size: what it trains, checks, counts and tells."""

import json
from collections import Counter

import pytest
import torch
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.gpu import speed
from pqm_benchmarks.kernels import head as heads
from pqm_benchmarks.kernels import probe
from pqm_benchmarks.kernels.head import CYCLE, LENGTHS, Head, check, epoch_of, make_batches, make_states, probe_epoch
from torch.utils._python_dispatch import TorchDispatchMode

from pqm_fast.errors import PQMError

CPU = torch.device("cpu")


def bench(out, *options):
    return main(["probe", "--out", str(out), "--device", "cpu", "--seconds", "0", "--width", "64", *options])


def test_a_run_stores_every_figure(tmp_path, capsys):
    out = tmp_path / "probe.json"
    assert bench(out, "--gigabytes", "0.0001", "--batches", "128", "0") == 0
    results = json.loads(out.read_text())
    assert (results["device"], results["dtype"], results["left_out"]) == ("cpu", "float32", {})
    assert results["environment"].keys() >= {"device", "versions", "commit"}
    states = int(0.0001e9) // (64 * 4) // CYCLE * CYCLE
    cases = [(batch, loop) for batch in (128, 0) for loop in ("launches", "probe")]
    assert [(r["batch"], r["loop"]) for r in results["records"]] == cases
    for record in results["records"]:
        assert (record["states"], record["bytes"], record["width"]) == (states, states * 64 * 4, 64)
        assert record["epochs_per_s"] == pytest.approx(1 / record["seconds"])
        assert record["gb_s"] == pytest.approx(2 * record["bytes"] / record["seconds"] / 1e9)
        assert record["percent_of_copy"] == pytest.approx(100 * record["gb_s"] / results["copy_gb_s"])
    printed = capsys.readouterr().out
    assert "these are NOT figures of a GPU" in printed
    assert f"{states} x 64 (9.83e-05 GB)" in printed
    assert bench(out) == 1
    assert "exists already; delete it or choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--gigabytes", "0"], ["--batches", "100"], ["--batches", "-32"], ["--seconds", "-1"]]
)
def test_options_that_make_no_sense(tmp_path, options, capsys):
    assert bench(tmp_path / "probe.json", *options) == 1
    assert f"batches multiples of {CYCLE}" in capsys.readouterr().err


def test_what_cannot_be_made_is_told(tmp_path, capsys):
    assert bench(tmp_path / "probe.json", "--gigabytes", "1e-6") == 1
    assert "1,000 bytes hold fewer than 32 states of 64 columns; give more gigabytes" in capsys.readouterr().err


def test_batches_are_the_states_in_order():
    states, labels = make_states(100 * CYCLE * 8 * 4, 8, torch.float32, CPU, 0)
    assert states.shape == (100 * CYCLE, 8)
    assert not states.requires_grad
    batches = make_batches(states, labels, 64 * CYCLE)
    assert torch.cat([batch.hidden for batch in batches]).equal(states)
    assert torch.cat([batch.labels for batch in batches]).equal(labels)
    assert labels.mean().item() == pytest.approx(0.75, abs=0.03)
    assert [len(batch.hidden) for batch in batches] == [64 * CYCLE, 36 * CYCLE]
    for batch in batches:
        assert batch.hidden.untyped_storage().data_ptr() == states.untyped_storage().data_ptr()  # a slice, no copy
        assert batch.step_index.tolist() == list(range(len(batch.hidden)))
        assert batch.cu_steps.diff().tolist() == [*LENGTHS] * (len(batch.hidden) // CYCLE)


def test_the_head_learns():
    """From states with a column that tells the label."""
    states, labels = make_states(32 * CYCLE * 16 * 4, 16, torch.float32, CPU, 0)
    states /= 4
    states[:, 3] = 4 * labels - 2
    head = Head(16, CPU, "eager")
    epoch = epoch_of(head, make_batches(states, labels, 4 * CYCLE))
    for _ in range(20):
        epoch()
    q = states @ (head.weight.detach() * head.norm_weight)
    assert q[labels == 1].min() > q[labels == 0].max()


def test_the_step_of_the_probe_trains_the_same_head(monkeypatch):
    """With the function that `pqm-fast probe` calls; its bias is not decayed, which the ranking loss hardly sees."""
    states, labels = make_states(32 * CYCLE * 16 * 4, 16, torch.float32, CPU, 0)
    batches = make_batches(states, labels, 4 * CYCLE)
    plain = Head(16, CPU, "eager")
    head, epoch = probe_epoch(batches)
    for one in (epoch, epoch_of(plain, batches)) * 3:
        one()
    assert plain.weight.abs().min() > 0
    torch.testing.assert_close(head.plain()[0], plain.weight, rtol=1e-3, atol=1e-5)
    monkeypatch.setattr("pqm_fast.probe.train_head.take_step", lambda *_: pytest.fail("a step of the product"))
    with pytest.raises(pytest.fail.Exception, match="a step of the product"):
        probe_epoch(batches)[1]()


class Operators(TorchDispatchMode):
    """Counts the operators that are called, by name."""

    def __init__(self):
        super().__init__()
        self.called = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def test_a_step_has_six_launches(monkeypatch):
    """Three of the op (here in name only: the interpreter calls operators of its own), and three of PyTorch."""
    pytest.importorskip("triton")
    from pqm_kernels.fused_step_loss import api
    from pqm_kernels.launch import Launcher

    states, labels = make_states(CYCLE * 8 * 4, 8, torch.float32, CPU, 0)
    [batch] = make_batches(states, labels, CYCLE)
    launched = []
    monkeypatch.setattr(Launcher, "launch", lambda self, *given, **named: launched.append(self.kernel.__name__))
    for name in ("check_inputs", "check_steps"):  # they read values, on the CPU alone
        monkeypatch.setattr(api, name, lambda *given: None)
    head = Head(8, CPU, "triton")
    head.step(batch)  # makes the state of the optimizer
    launched.clear()
    with Operators() as operators:
        head.step(batch)
    assert launched == ["forward_kernel", "rows_kernel", "head_kernel"]
    launch_nothing = {"step_loss", "step_loss_backward", "detach", "view", "empty", "new_empty"}
    launch_nothing |= {"_record_function_enter_new", "_record_function_exit"}
    launching = {name: count for name, count in operators.called.items() if name not in launch_nothing}
    assert launching == {"ones_like": 1, "_foreach_add_": 1, "_fused_adamw_": 1}


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    states, labels = make_states(CYCLE * 8 * 4, 8, torch.float32, CPU, 0)
    [batch] = make_batches(states, labels, CYCLE)
    check(8, "eager", batch)
    plain = heads.step_loss

    def wrong(*given, backend, **named):
        out = plain(*given, backend="eager", **named)
        return out._replace(loss=1.01 * out.loss) if backend == "wrong" else out

    monkeypatch.setattr(heads, "step_loss", wrong)
    with pytest.raises(PQMError, match=r"the gradient of the head is off by 0\.01 of its size"):
        check(8, "wrong", batch)


def test_the_stage(job, stored, monkeypatch, tmp_path):
    speed.probe(job)
    results = json.loads((tmp_path / "probe.json").read_text())
    assert [r["batch"] for r in results["records"]] == [512, 512, 0, 0]
    assert stored()["figures"]["headline"].startswith("epochs/s: 0.000999 GB, batches of 512, step by step ")
    measured = probe._epoch_seconds

    def broken(states, labels, steps, *rest):
        if steps == 512:
            raise PQMError("broken")
        return measured(states, labels, steps, *rest)

    monkeypatch.setattr(probe, "_epoch_seconds", broken)
    with pytest.raises(PQMError, match=r"batches of 512, step by step: broken; .*batches of 512, probe step: broken$"):
        speed.probe(job)
    assert len(json.loads((tmp_path / "probe.json").read_text())["records"]) == 2
