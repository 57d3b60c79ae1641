"""`python -m pqm_benchmarks kernels` at a tiny size, and that what it compares, counts and reports is right."""

import dataclasses
import functools
import json
import math
import subprocess
import sys

import pytest
import torch
from pqm_benchmarks.__main__ import COMMANDS, main
from pqm_benchmarks.kernels import implementations
from pqm_benchmarks.kernels.implementations import IMPLEMENTATIONS, Call, why_not
from pqm_benchmarks.kernels.inputs import SIZES, floor_bytes, make_inputs
from pqm_benchmarks.kernels.report import NAMES, TARGETS, table, targets
from pqm_benchmarks.kernels.run import KernelBench
from pqm_benchmarks.shared.published import published_rank
from pqm_kernels import trajectory_losses

TINY = ["--sizes", "tiny", "--widths", "64", "--repeats", "1"]
CPU = torch.device("cpu")
CHOSEN = ["published", "eager", *(["compiled"] if torch.cuda.is_available() else []), "fused"]


def bench(out, *options):
    return main(["kernels", "--out", str(out), *options])


def tiny_inputs(number=0, dtype=torch.float32):
    return make_inputs(SIZES["tiny"], 24, dtype, CPU, 5, number)


def tensors_of(inputs):
    tensors = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    return tensors | tensors.pop("siblings")._asdict()


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a run over several implementations, on a GPU where there is one. Compiling takes long on a CPU."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("bench")
    assert bench(folder, *TINY, "--norm", "with", "--implementations", *CHOSEN) == 0
    return folder


def test_a_run_stores_every_figure(folder):
    results = json.loads((folder / "kernels.json").read_text())
    records = results["records"]
    on_gpu = torch.cuda.is_available()
    assert {(r["implementation"], r["pass"]) for r in records} == {
        (name, passed) for name in CHOSEN for passed in ("forward", "forward+backward")
    }
    assert results["device"] == ("cuda" if on_gpu else "cpu")
    assert results["environment"].keys() >= {"device", "versions", "commit"}
    assert (results["left_out"], results["config"]["widths"]) == ({}, [64])
    assert 0 < results["copy_gb_s"] < math.inf
    item = 2 if on_gpu else 4
    for record in records:
        assert (record["rows"], record["steps"], record["trajectories"], record["norm"]) == (256, 32, 4, True)
        moved = 32 if record["pass"] == "forward" else 32 + 32 + 256
        assert record["floor_bytes"] == moved * 64 * item
        taken = record["gpu_us"] if on_gpu else record["wall_us"]
        assert record["gb_s"] == pytest.approx(moved * 64 * item / taken / 1e3)
        assert record["percent_of_copy"] == pytest.approx(100 * record["floor_us"] / taken)
        assert record["floor_us"] == pytest.approx(moved * 64 * item / results["copy_gb_s"] / 1e3)
        rounds = [record["wall_us_rounds"], *([record["gpu_us_rounds"]] if on_gpu else [])]
        assert all(len(pair) == 2 and all(0 < time < math.inf for time in pair) for pair in rounds)
        assert record["wall_us"] == pytest.approx(sum(record["wall_us_rounds"]) / 2)
        if on_gpu:
            assert record["graph"], record["why_no_graph"]
            assert record["extra_bytes"] >= 0
        else:
            assert record["gpu_us"] is None
            assert record["extra_bytes"] is None
            assert not record["graph"]


def test_a_stored_file_gives_table_and_pictures_again(folder, tmp_path, capsys):
    assert bench(tmp_path / "images", "--results", str(folder / "kernels.json")) == 0
    text = table(json.loads((folder / "kernels.json").read_text()))
    assert text in capsys.readouterr().out
    assert ("NOT figures of a GPU" in text) == (not torch.cuda.is_available())
    pictures = ["kernels_bandwidth.png", "kernels_speedup.png"]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == pictures
    for name in pictures:
        assert (tmp_path / "images" / name).read_bytes() == (folder / name).read_bytes()
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert (folder / name).stat().st_size > 10_000


def test_results_are_not_overwritten(folder, capsys):
    before = (folder / "kernels.json").read_bytes()
    assert bench(folder, *TINY) == 1
    assert "exists already; delete it or choose another --out" in capsys.readouterr().err
    assert (folder / "kernels.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", '{"records": []}', None])
def test_a_file_that_is_no_result_is_refused(tmp_path, capsys, content):
    file = tmp_path / "kernels.json"
    if content is not None:
        file.write_text(content)
    assert bench(tmp_path / "images", "--results", str(file)) == 1
    assert f"{file}: is not a kernels.json of `python -m pqm_benchmarks kernels`" in capsys.readouterr().err
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--losses", "ranks"], "losses: expected some of rank, "),
        (["--widths", "0"], "repeats and widths must be positive, found 50 and 0"),
        (["--device", "tpu"], "device: expected cpu, or cuda where there is one, found 'tpu'"),
    ],
)
def test_options_that_make_no_sense(tmp_path, capsys, options, message):
    assert bench(tmp_path, *options) == 1
    assert message in capsys.readouterr().err


def test_without_a_gpu_or_the_interpreter_the_fused_op_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert why_not("fused", "rank", CPU) == why_not("fused-sorting", "rank", CPU)
    run = [*TINY, "--device", "cpu", "--norm", "without", "--losses", "rank", "bce", "--implementations"]
    assert bench(tmp_path / "none", *run, "fused") == 1
    assert (
        "nothing can be measured here: Triton runs on the CPU only with TRITON_INTERPRET=1" in capsys.readouterr().err
    )
    assert bench(tmp_path / "some", *run, "published", "eager", "fused") == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "some" / "kernels.json").read_text())
    assert results["left_out"].keys() == {"fused, rank", "fused, bce", "published, bce"}
    assert all(f"left out: {name} ({why})" in out for name, why in results["left_out"].items())
    measured = {(record["implementation"], record["loss"]) for record in results["records"]}
    assert measured == {("published", "rank"), ("eager", "rank"), ("eager", "bce")}


# ---- what is compared -----------------------------------------------------------------------------------------------


def spoilt(wrong, factor, monkeypatch):
    """Makes `eager` wrong by a factor: in its loss, or in the gradient of hidden alone."""

    def call(inputs, loss, norm):
        right = implementations.eager(inputs, loss, norm)

        def run():
            value, q = right.loss_and_scores()
            if wrong == "loss":
                return factor * value, q
            return value + (factor - 1) * (value - value.detach()), q

        return Call(run, right.leaves)

    monkeypatch.setitem(IMPLEMENTATIONS, "eager", call)


@pytest.mark.parametrize(("wrong", "factor"), [("loss", 1.001), ("gradient", 1.001), ("loss", math.nan)])
def test_what_is_wrong_is_told_and_not_timed(tmp_path, capsys, monkeypatch, wrong, factor):
    spoilt(wrong, factor, monkeypatch)
    run = [*TINY, "--device", "cpu", "--norm", "without", "--implementations"]
    assert bench(tmp_path / "both", *run, "eager", "published") == 0
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "both" / "kernels.json").read_text())
    [(what, why)] = results["left_out"].items()
    assert what == "eager, tiny, D 64, rank, no norm"
    assert f"eager, loss rank, [256, 64] torch.float32, without norm: the {wrong}" in why
    assert ("off by nan of" if math.isnan(factor) else "off by 0.001 of") in why
    assert f"{what.removeprefix('eager, ')}, eager: left out, {why}" in shown
    assert f"left out: {what} ({why})" in shown
    assert {record["implementation"] for record in results["records"]} == {"published"}
    assert bench(tmp_path / "alone", *run, "eager") == 1
    assert "nothing can be measured here: eager, loss rank" in capsys.readouterr().err
    assert not (tmp_path / "alone").exists()


def test_what_fails_while_it_is_timed_is_left_out(tmp_path, monkeypatch):
    """Whatever it raises; the pass that was timed before stays."""

    def call(inputs, loss, norm):
        right = implementations.eager(inputs, loss, norm)
        return Failing(right.loss_and_scores, right.leaves, [])

    class Failing(Call):
        def __init__(self, run, leaves, calls):
            super().__init__(run, leaves)
            object.__setattr__(self, "calls", calls)

        def forward_backward(self):
            self.calls.append(1)
            if len(self.calls) > 1:  # the first one is the check
                raise torch.OutOfMemoryError("1 GB wanted")
            return super().forward_backward()

    monkeypatch.setitem(IMPLEMENTATIONS, "eager", call)
    run = [*TINY, "--device", "cpu", "--norm", "without", "--implementations", "eager", "published"]
    assert bench(tmp_path, *run) == 0
    results = json.loads((tmp_path / "kernels.json").read_text())
    assert results["left_out"] == {"eager, tiny, D 64, rank, no norm": "forward+backward: out of memory"}
    assert [(r["implementation"], r["pass"]) for r in results["records"]] == [
        ("eager", "forward"), ("published", "forward"), ("published", "forward+backward"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "norm", "dtype"),
    [
        ("published", True, torch.float32),
        ("published", False, torch.bfloat16),
        ("published", True, torch.float16),
        ("eager", False, torch.float32),
        ("eager", True, torch.bfloat16),
        ("compiled", True, torch.float32),
    ],
)
def test_what_the_op_is_compared_with_computes_the_same(name, norm, dtype, monkeypatch):
    """For batches of both kinds: the 32 steps of tiny, whose errors do not average out, and many."""
    if name == "compiled":  # captured whole, and then run without the compiler, which takes long on a CPU
        compiled = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", compiled)
        monkeypatch.setattr(
            implementations, "_compiled_gather_first", implementations._compiled_gather_first.__wrapped__
        )
    for size in (SIZES["tiny"], dataclasses.replace(SIZES["training"], rows=2048)):
        inputs = make_inputs(size, 48, dtype, CPU, 1, 0)
        implementations.check(name, IMPLEMENTATIONS[name](inputs, "rank", norm), inputs, "rank", norm)


def test_the_published_loss_is_below_the_definition_by_less_than_its_1e_5():
    """The 1e-5 in its denominators, all above 1, can only raise a term, and by less than 1e-5."""
    inputs = tiny_inputs()
    generator = torch.Generator().manual_seed(0)
    raised = []
    for scale in (0.1, 1.0, 5.0, 20.0):
        q = scale * torch.randn(len(inputs.labels), generator=generator, dtype=torch.float64)
        rewards = torch.zeros(inputs.padded_labels.numel(), dtype=torch.float64)
        rewards = rewards.index_copy(0, inputs.slots, q).view(inputs.padded_labels.shape)
        for labels in (inputs.labels, torch.ones_like(inputs.labels), torch.zeros_like(inputs.labels)):
            padded = torch.full((rewards.numel(),), -100.0).index_copy(0, inputs.slots, labels).view(rewards.shape)
            exact = trajectory_losses(q, labels, inputs.cu_steps, "rank", 4.0).mean()
            raised.append(float(published_rank(rewards, padded, 4.0) - exact))
    assert all(-1e-12 < difference < 1e-5 for difference in raised), raised
    assert max(raised) > 1e-7


def test_batches_in_turn_differ_in_everything_but_shape():
    first, second = tiny_inputs(0), tiny_inputs(1)
    ours, others = tensors_of(first), tensors_of(second)
    for name, tensor in ours.items():
        assert tensor.shape == others[name].shape
        # the bias is a constant, and the one question of these batches has as many siblings at each depth
        assert name in ("bias", "cu_groups", "first", "end") or not torch.equal(tensor, others[name]), name
    for inputs in (first, second):
        lengths = inputs.cu_steps.diff()
        assert (int(lengths.min()) >= 1, int(lengths.max())) == (True, inputs.padded_index.shape[1])
        assert (inputs.step_index.diff() > 0).all()
        assert int(inputs.cu_steps[-1]) == len(inputs.step_index) == len(inputs.labels)
        # row by row, the padded form holds the trajectories
        rows = [row[labels >= 0] for row, labels in zip(inputs.padded_index, inputs.padded_labels, strict=True)]
        assert [row.tolist() for row in rows] == [r.tolist() for r in inputs.step_index.split(lengths.tolist())]
        assert torch.equal(inputs.padded_labels.flatten()[inputs.slots], inputs.labels)
        assert int((inputs.padded_labels >= 0).sum()) == len(inputs.labels)
    again = tensors_of(tiny_inputs(1))
    assert all(torch.equal(tensor, others[name]) for name, tensor in again.items())


def test_byte_floor_by_hand():
    """10 rows of 3 numbers; the 6 steps read 4 different rows."""
    inputs = dataclasses.replace(
        tiny_inputs(), hidden=torch.zeros(10, 3), step_index=torch.tensor([1, 4, 4, 9, 1, 0])
    )  # fmt: skip
    assert floor_bytes(inputs, backward=False) == 4 * 3 * 4
    assert floor_bytes(inputs, backward=True) == (4 + 4 + 10) * 3 * 4
    half = dataclasses.replace(inputs, hidden=torch.zeros(10, 3, dtype=torch.bfloat16))
    assert floor_bytes(half, backward=True) == (4 + 4 + 10) * 3 * 2


# ---- targets --------------------------------------------------------------------------------------------------------


def made_up(size, passed, name, width=64, **figures):
    """A record of round figures, which no device has measured."""
    record = {"size": size, "steps": 1024, "trajectories": 128, "width": width, "loss": "rank"}
    record |= {"norm": False, "pass": passed}
    figures = {"percent_of_copy": 90.0, "gpu_us": 10.0, "floor_us": 4.0, "wall_us": 10.0, "extra_bytes": 0} | figures
    return record | {"implementation": name} | figures


def lines_of(records):
    shown = targets({"environment": {"device": "NVIDIA H200"}, "records": records}).splitlines()
    assert shown[0] == "targets, set for one NVIDIA H200; measured on NVIDIA H200"
    elsewhere = targets({"environment": {"device": "NVIDIA H100"}, "records": records}).splitlines()
    assert all(line.endswith("not judged") for line in elsewhere[2:])
    return [line for line in shown[2:] if line]


def test_targets_are_judged_by_the_worst_case():
    both = [made_up("bandwidth", "forward", "fused"), made_up("bandwidth", "forward", "fused", 128)]
    assert [line.split()[-1] for line in lines_of(both)] == ["met", "met"]  # the rate, and the memory
    both[1]["percent_of_copy"] = 87.9
    rate, memory = lines_of(both)
    assert rate.endswith("NOT MET")
    assert ">= 88%" in rate
    assert "87.90%  128, rank, no norm, forward" in rate
    assert not memory.endswith("NOT MET")


@pytest.mark.parametrize(
    ("figures", "met"),
    [
        ({"percent_of_copy": 84.9}, {}),  # no target of the training size
        ({"wall_us": 10.1}, {"published": False, "compiled": False}),
        ({"gpu_us": 13.0}, {"GPU time": True}),  # 8 + 1.25 x 4
        ({"gpu_us": 13.1}, {"GPU time": False}),
        ({"extra_bytes": 16 * 1024 + 4 * 128 + 2**20}, {"extra memory": True}),
        ({"extra_bytes": 16 * 1024 + 2**20 + 20000}, {"extra memory": False}),
    ],
)
def test_each_target_of_the_training_size(figures, met):
    passed = "forward+backward"
    records = [
        made_up("training", passed, "published", wall_us=50.0),
        made_up("training", passed, "compiled", wall_us=20.0),
        made_up("training", passed, "fused", **figures),
    ]
    words = {"published": "published code", "compiled": "torch.compile", "GPU time": "GPU", "extra memory": "extra"}
    lines = lines_of(records)
    assert len(lines) == 4
    for name, word in words.items():
        [line] = [line for line in lines if word in line]
        assert line.endswith("NOT MET") == (not met.get(name, True)), line
    assert len(lines_of(records[2:])) == 2  # nothing to compare wall time with


def test_every_target_and_name_is_of_something_that_is_measured():
    fields = {field.name: field for field in dataclasses.fields(KernelBench)}
    assert tuple(NAMES) == tuple(IMPLEMENTATIONS) == fields["implementations"].default
    assert all(set(target.sizes) <= set(SIZES) and target.needs in NAMES for target in TARGETS)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_usage_lists_what_can_be_measured(capsys):
    assert main([]) == 2
    listed = capsys.readouterr().out
    commands = [line.split()[0] for line in listed.split("\n\n")[1].splitlines()]
    assert commands == list(COMMANDS)
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == listed
    assert main(["nope"]) == 2
    assert capsys.readouterr().err == f"pqm_benchmarks: no command 'nope'\n\n{listed}"


def test_help_explains_the_options_and_needs_no_heavy_package(tmp_path):
    code = (
        "import sys; from pqm_benchmarks.__main__ import main\n"
        "code = main(['kernels', '--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'triton'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for field in dataclasses.fields(KernelBench):
        assert f"--{field.name} " in done.stdout


def test_python_starts_a_run_without_the_packages_of_the_command_line(tmp_path):
    """What a machine with torch, triton and matplotlib alone needs."""
    code = (
        "import sys\n"
        "for name in ('tyro', 'yaml', 'datasets', 'transformers', 'tqdm', 'safetensors'): sys.modules[name] = None\n"
        "from pqm_benchmarks.kernels.run import KernelBench, run\n"
        f"run(KernelBench(out={str(tmp_path)!r}, device='cpu', norm='without', repeats=1, implementations=('eager',)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernels.json").exists()
