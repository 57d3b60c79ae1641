"""Faults during training: what is lost, what the message says, and that the resumed run has the same result."""

import json
import os
import shutil
import signal
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from cut_off import cut_off
from flip import flip
from small_runs import options_in
from untimed import untimed

from pqm_fast.cli import main
from pqm_fast.common.checksums import find_damage
from pqm_fast.common.signals import Stopped
from pqm_fast.errors import Diverged, PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.report.runs import find_runs
from pqm_fast.train import active_run, checkpoint, curve, loop, schedule
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics, read_starts

STEPS = 12
ARGUMENTS = {
    "max_steps": STEPS, "save_every": 5, "eval_every": 4, "eval_fraction": 0.2, "keep_checkpoints": 3,
    "learning_rate": 1e-2,
}  # fmt: skip
COMMAND = "pqm-fast train --config {0}/config.yaml --resume"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny.model_folder(folder / "model", num_hidden_layers=1)
    tiny.write_data(folder / "data.jsonl")
    return folder


@pytest.fixture(scope="module")
def make(world):
    def configure(out: Path, **options):
        return TrainConfig(out=str(out), **(options_in(world) | ARGUMENTS | options))

    return configure


def outcome(folder: Path):
    """The result of a run: its metrics without times, and the bytes of its weights."""
    rows = untimed(folder / "metrics.jsonl")
    return rows, json.loads((folder / "metrics.json").read_text()), (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """The folder of a run without any fault."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(make(folder))
    return folder


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint.complete_checkpoints(folder / "checkpoints")]


def assert_clean(folder: Path):
    """Nothing half-written, and every checkpoint as it was written."""
    assert [path for path in folder.rglob("*") if ".tmp-" in path.name or path.name == ".lock"] == []
    for path in checkpoint.complete_checkpoints(folder / "checkpoints"):
        assert find_damage(path, checkpoint.FILES) is None


def before(monkeypatch, where: str, count: int, act):
    """Calls `act` just before the `count`th call of `where`, the name of a function that the loop uses."""
    modules = {
        "atomic_folder": checkpoint,
        "sums": checkpoint,
        "write_list": checkpoint,
        "safe_dump": yaml,
        "evaluate": active_run,
        "first_not_finite": active_run,
    }
    module = modules.get(where, loop)
    original, calls = getattr(module, where), []

    def function(*args, **kwargs):
        calls.append(where)
        if len(calls) == count:
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(module, where, function)


# ---- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.fault(
    "SIGTERM, SIGINT or SIGUSR1 in a training: in a step, in an evaluation, while a checkpoint or weights are written",
    how="the signal, at that point",
    lost="nothing: a checkpoint is saved after the step; exit code 143, 130 or 138",
    recovers="`train --resume`, with the same result to the bit",
)
@pytest.mark.usefixtures("sigint_taken")
@pytest.mark.parametrize(
    ("number", "where", "count", "step"),
    [
        pytest.param(signal.SIGTERM, "train_step", 7, 7, id="step"),
        pytest.param(signal.SIGINT, "evaluate", 2, 8, id="evaluation"),
        pytest.param(signal.SIGUSR1, "sums", 3, 10, id="checkpoint"),
        pytest.param(signal.SIGTERM, "final_weights", 1, STEPS, id="final weights"),
        pytest.param(signal.SIGTERM, "evaluate", 3, STEPS, id="final evaluation"),
    ],
)
def test_a_signal_saves_and_the_run_resumes(make, whole, tmp_path, monkeypatch, number, where, count, step):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        before(patch, where, count, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Stopped) as stopped:
            train(make(run))
    assert stopped.value.number == number
    kept = run / "checkpoints" / f"step-{step:07d}"
    assert str(stopped.value) == f"{kept} is kept; resume from it with: {COMMAND.format(run)}"
    assert_clean(run)
    train(make(run, resume=True))
    assert outcome(run) == outcome(whole)


def test_a_signal_saves_where_no_checkpoints_were_asked_for(make, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        before(patch, "train_step", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            train(make(tmp_path / "run", save_every=0))
    assert steps(tmp_path / "run") == [3]
    train(make(tmp_path / "run", save_every=0, resume=True))
    assert outcome(tmp_path / "run") == outcome(whole)
    with pytest.raises(PQMError, match="the run is complete"):
        train(make(tmp_path / "run", save_every=0, resume=True))


@pytest.mark.processes
def test_the_exit_code_of_the_command(make, tmp_path):
    """Two signals within a moment, as `timeout` sends them, count as one."""
    run, said = tmp_path / "run", tmp_path / "said"
    options = make(run).to_dict() | {"max_steps": 10**6, "save_every": 0, "eval_every": 0, "eval_fraction": 0}
    options = {k: v for k, v in options.items() if v is not None and v != [] and k != "resume"}
    (tmp_path / "options.yaml").write_text(json.dumps(options))
    child = os.fork()
    if not child:
        sys.stderr = open(said, "w", buffering=1)  # noqa: SIM115
        os._exit(main(["train", "--config", str(tmp_path / "options.yaml")]))
    until = time.monotonic() + 60
    while not read_metrics(run / "metrics.jsonl"):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(child, signal.SIGTERM)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    [step] = steps(run)
    kept = f"{run}/checkpoints/step-{step:07d} is kept; resume from it with: {COMMAND.format(run)}"
    assert said.read_text().splitlines()[-1] == f"pqm-fast: terminated; {kept}"
    assert_clean(run)


# ---- killed ---------------------------------------------------------------------------------------------------------


def killed(config: TrainConfig, where: str, count: int):
    """Trains in another process, which is killed just before the `count`th call of `where`."""
    process = os.fork()
    if not process:
        try:
            with pytest.MonkeyPatch.context() as patch:
                before(patch, where, count, lambda: os.kill(os.getpid(), signal.SIGKILL))
                train(config)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


@pytest.mark.fault(
    "a training is killed: while its options or a checkpoint are written, in a step, in the final evaluation or before "
    "the picture",
    how="`kill -9`",
    lost="the steps since the last checkpoint; nothing at the end",
    recovers="`train --resume`, with the same result to the bit; at the end it does only what is missing; before the "
    "options are written, the same command again",
)
@pytest.mark.processes
@pytest.mark.parametrize(
    ("where", "count", "kept"),
    [
        pytest.param("safe_dump", 1, [], id="options"),
        pytest.param("train_step", 9, [5], id="step"),
        pytest.param("write_list", 2, [5], id="checkpoint"),
        pytest.param("evaluate", 3, [5, 10, STEPS], id="final evaluation"),
        pytest.param("draw_curve", 1, [5, 10, STEPS], id="picture"),
    ],
)
def test_a_killed_run_resumes(make, whole, tmp_path, monkeypatch, where, count, kept):
    run = tmp_path / "run"
    killed(make(run), where, count)
    assert steps(run) == kept
    done, train_step = [], loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *given, **named: done.append(1) or train_step(*given, **named))
    if not kept:
        assert sorted(path.name[:17] for path in run.iterdir()) == [".config.yaml.tmp-", ".lock"]
        with pytest.raises(PQMError, match=r"no run to resume here .*start it without --resume"):
            train(make(run, resume=True))
    train(make(run, resume=bool(kept)))
    assert len(done) == STEPS - max(kept, default=0)
    assert outcome(run) == outcome(whole)
    assert_clean(run)


@pytest.mark.processes
def test_weights_without_a_checkpoint_are_not_trained_again(make, tmp_path):
    """The run was killed in its final evaluation, and saved no checkpoints."""
    killed(make(tmp_path / "run", save_every=0, max_steps=1), "evaluate", 1)
    with pytest.raises(PQMError, match=r"holds its final weights, and no checkpoint to resume from.*pqm-fast evaluate"):
        train(make(tmp_path / "run", save_every=0, max_steps=1, resume=True))


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cut(whole, tmp_path):
    """A copy of the whole run as if it had been killed after step 11: with checkpoints of steps 5 and 10."""
    run = tmp_path / "cut"
    shutil.copytree(whole, run)
    cut_off(run, 10)
    assert steps(run) == [5, 10]
    return run


@pytest.mark.fault(
    "a byte of a checkpoint changes, or a file of it is lost",
    how="a bit is flipped; a file is cut off; a file is removed",
    lost="the steps since the checkpoint before",
    recovers="`train --resume` names the file and resumes from the newest intact checkpoint",
)
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("shard-00001-model-00001-of-00001.safetensors", flip),
        ("SHA256SUMS", flip),
        ("state.json", lambda file: os.truncate(file, 100)),
        ("shard-00001-model-00001-of-00001.safetensors", Path.unlink),
    ],
)
def test_the_newest_intact_checkpoint_is_used(make, whole, cut, capsys, name, damage):
    damage(cut / "checkpoints" / "step-0000010" / name)
    train(make(cut, resume=True))
    said = capsys.readouterr().out
    [line] = [line for line in said.splitlines() if "is damaged" in line]
    assert line.startswith("step-0000010 is damaged (")
    assert name in line or name == "SHA256SUMS"  # whose own damage may be in the sum of another
    assert f"resuming from {cut}/checkpoints/step-0000005" in said
    assert outcome(cut) == outcome(whole)
    assert_clean(cut)


def test_only_folders_count_as_interrupted_checkpoints(make, whole, cut, tmp_path):
    """Files and links with such a name are not removed, and do no harm."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    link, plain = (cut / "checkpoints" / f".step-0000013.tmp-{end}" for end in ("abcdefgh", "12345678"))
    link.symlink_to(precious)
    plain.write_text("mine too")
    for path in (link, plain):
        os.utime(path, (0, 0), follow_symlinks=False)
    train(make(cut, resume=True))
    assert outcome(cut) == outcome(whole)
    assert ((link / "file").read_text(), plain.read_text()) == ("mine", "mine too")


def test_no_intact_checkpoint(make, cut):
    for step in (5, 10):
        flip(cut / "checkpoints" / f"step-{step:07d}" / "state.json")
    with pytest.raises(
        PQMError, match=r"every checkpoint is damaged.*/step-0000010: state.json or SHA256SUMS has changed"
    ):
        train(make(cut, resume=True))
    assert steps(cut) == [5, 10]


@pytest.mark.fault(
    "a byte of a finished model changes, or a file of it is lost",
    how="a bit of the weights or of the checksums is flipped; the weights or the tokenizer are removed",
    lost="nothing: the damaged model is not used",
    recovers="the message names the file; `train --resume` writes the model again from the last checkpoint",
)
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", flip, "model.safetensors or SHA256SUMS has changed since it was written"),
        ("model.safetensors", Path.unlink, r"model.safetensors is missing \(or SHA256SUMS is damaged\)"),
        ("tokenizer.json", Path.unlink, "tokenizer.json is missing"),
        ("SHA256SUMS", lambda file: flip(file, 0.0), "or SHA256SUMS has changed since it was written"),
    ],
)
def test_a_damaged_model_is_not_used_but_written_again(make, whole, tmp_path, monkeypatch, name, damage, message):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    damage(run / name)
    with pytest.raises(PQMError, match=rf"run: .*{message}.*\(`{COMMAND.format(run)}`\), put back a copy"):
        StepQModel.from_pretrained(str(run))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", None)  # no step is taken
        train(make(run, resume=True))
    assert outcome(run) == outcome(whole)
    assert find_damage(run, ["model.safetensors"]) is None
    with pytest.raises(PQMError, match="the run is complete"):
        train(make(run, resume=True))


def test_a_model_that_was_changed_on_purpose(make, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    flip(run / "model.safetensors", 0.9)
    (run / "SHA256SUMS").unlink()  # as the message says
    StepQModel.from_pretrained(str(run))
    with pytest.raises(PQMError, match="the run is complete"):
        train(make(run, resume=True))
    shutil.rmtree(run / "checkpoints")
    (run / "SHA256SUMS").write_bytes((whole / "SHA256SUMS").read_bytes())
    with pytest.raises(PQMError, match="has changed since it was written: the SHA-256 differs; put back a copy"):
        StepQModel.from_pretrained(str(run))


@pytest.mark.fault(
    "a weight, or what the optimizer keeps for it, is no longer finite",
    how="a NaN or an infinity is written into it between two steps, or it is too large for bfloat16",
    lost="the run since its last checkpoint; nothing that is not finite is saved",
    recovers="the message names the tensor; earlier checkpoints are unchanged",
)
@pytest.mark.parametrize("damaged", ["weight", "moment", "bfloat16"])
def test_what_is_not_finite_is_not_saved(make, tmp_path, monkeypatch, damaged):
    run = tmp_path / "run"
    original = loop.train_step

    def poisoned(model, optimizer, batches, objective, **named):
        result = original(model, optimizer, batches, objective, **named)
        weight = model.head.weight
        if len(steps(run)) == 1:
            if damaged == "moment":
                optimizer.state[weight]["exp_avg_sq"][0, 3] = torch.inf
            else:
                with torch.no_grad():
                    weight[0, 3] = torch.nan if damaged == "weight" else 3.4e38
        return result

    monkeypatch.setattr(loop, "train_step", poisoned)
    options = {"max_steps": 6, "eval_every": 0, "eval_fraction": 0}
    message = {
        "weight": r"after step 6, classifier.score.weight is not finite, so nothing was saved",
        "moment": r"after step 6, classifier.score.weight \(exp_avg_sq of the optimizer\) is not finite",
        "bfloat16": r"after step 6, score.weight is not finite, so nothing was saved",
    }[damaged]
    with pytest.raises(Diverged, match=message):
        train(make(run, **options))
    assert steps(run) == ([5, 6] if damaged == "bfloat16" else [5])
    assert not (run / "config.json").exists()
    assert_clean(run)


# ---- what cannot be written -----------------------------------------------------------------------------------------


@pytest.mark.fault(
    "the disk is full, or a file grows beyond its limit: at the metrics, a checkpoint, the final weights, the picture",
    how="a limit on the size of files, at which the system refuses the write",
    lost="the steps since the last checkpoint",
    recovers="one message with the file, the reason, what is kept and the command that resumes; nothing half-written",
)
@pytest.mark.parametrize(
    ("where", "count", "limit", "name"),
    [
        ("train_step", 8, 2500, "metrics.jsonl"),
        ("atomic_folder", 2, 30_000, "checkpoints/step-0000010"),
        ("final_weights", 1, 10_000, "model.safetensors"),
        ("draw_curve", 1, 10_000, "training.png"),
    ],
)
def test_a_full_disk_is_one_message(make, whole, tmp_path, monkeypatch, file_size_limit, where, count, limit, name):
    run = tmp_path / "run"
    with monkeypatch.context() as patch, ExitStack() as limits:
        if where == "draw_curve":
            patch.setattr(loop, "draw_curve", curve.draw_curve)
        before(patch, where, count, lambda: limits.enter_context(file_size_limit(limit)))
        with pytest.raises(PQMError) as error:
            train(make(run))
    kept = steps(run)[-1]
    assert str(error.value) == (
        f"{run}/{name}: cannot be written: File too large. {run}/checkpoints/step-{kept:07d} is kept; resume from it "
        f"with: {COMMAND.format(run)}"
    )
    assert_clean(run)
    metrics = run / "metrics.jsonl"
    assert len(read_metrics(metrics)) + len(read_starts(metrics)) == metrics.read_bytes().count(b"\n")
    train(make(run, resume=True))
    assert outcome(run) == outcome(whole)


@pytest.mark.fault(
    "the machine is out of memory while a checkpoint is written",
    how="an allocation by Python and by PyTorch that the system refuses",
    lost="the steps since the last checkpoint",
    recovers="one message, as for a full disk",
)
@pytest.mark.parametrize("allocate", [bytearray, torch.empty])
def test_no_memory_is_one_message(make, tmp_path, monkeypatch, allocate):
    run = tmp_path / "run"
    before(monkeypatch, "sums", 3, lambda: allocate(2**50))
    with pytest.raises(PQMError) as error:
        train(make(run))
    assert str(error.value) == (
        f"{run}/checkpoints/step-0000010: cannot be written: the machine is out of memory. "
        f"{run}/checkpoints/step-0000005 is kept; resume from it with: {COMMAND.format(run)}"
    )
    assert_clean(run)


@pytest.mark.fault(
    "the run folder, or its metrics.jsonl, is removed while a training writes into it",
    how="the folder is removed before a step and before a checkpoint, the file before a step",
    lost="the run",
    recovers="one message when the next line of metrics or checkpoint is written; no new folder is made",
)
@pytest.mark.parametrize(("where", "count"), [("train_step", 3), ("first_not_finite", 1)])
def test_a_removed_run_folder_is_noticed(make, tmp_path, monkeypatch, where, count):
    run = tmp_path / "run"
    before(monkeypatch, where, count, lambda: shutil.rmtree(run))
    with pytest.raises(PQMError, match=r"the run folder was removed or replaced while the run was writing into it"):
        train(make(run))
    assert not run.exists()


def test_a_removed_file_of_metrics_is_noticed(make, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        before(patch, "train_step", 7, lambda: (run / "metrics.jsonl").unlink())
        with pytest.raises(PQMError, match=r"metrics.jsonl: was removed or replaced.*step-0000005 is kept; resume"):
            train(make(run))
    train(make(run, resume=True))
    assert outcome(run)[1:] == outcome(whole)[1:]


# ---- the same run, and a longer one ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, r"config.json: hidden_act \('silu' then, 'gelu' now\)"),
        ({"rope_theta": 5e5}, r"config.json: rope_parameters: rope_theta \(10000.0 then, 500000.0 now\)"),
        ({"num_hidden_layers": 2}, r"config.json: num_hidden_layers \(1 then, 2 now\)"),
        ("weights", r"weights: model.safetensors \('\w+' then, '\w+' now\)"),
    ],
)
def test_another_model_is_refused(make, world, tmp_path, change, message):
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(world / "model", model)
    options = {"model": str(model), "save_every": 1, "eval_fraction": 0}
    if change == "weights":
        StepQModel.from_pretrained(str(model)).classifier.save_pretrained(model)
    train(make(run, max_steps=1, **options))
    if change == "weights":
        StepQModel.from_pretrained(str(world / "model")).classifier.save_pretrained(model)
    else:
        file = model / "config.json"
        config = json.loads(file.read_text())
        if "rope_theta" in change:
            config["rope_parameters"] |= change
        file.write_text(json.dumps(config | change))
    with pytest.raises(PQMError, match=f"model: is not the model that the run was started with: .*{message}"):
        train(make(run, max_steps=2, resume=True, **options))


def test_a_finished_run_is_extended(make, tmp_path, capsys):
    """If the learning rate does not depend on the length, the result is that of a longer run, to the bit."""
    constant = {"final_lr": 1.0, "warmup_steps": 0, "eval_every": 0}
    train(make(tmp_path / "long", **constant))
    run = tmp_path / "run"
    train(make(run, **(constant | {"max_steps": 7})))
    assert main(["train", "--config", str(run / "config.yaml"), "--resume", "--max-steps", str(STEPS)]) == 0
    assert (
        "extended from 7 to 12 steps: from step 8 on, the learning rate is that of a run of 12"
        in capsys.readouterr().out
    )
    rows, *rest = outcome(run)
    expected, *expected_rest = outcome(tmp_path / "long")
    assert rest == expected_rest
    assert [row for row in rows if row["step"] != 7 or row["kind"] == "train"] == expected
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [7, 12]
    with pytest.raises(PQMError, match=r"the run is complete.*for more steps than 12 pass --max-steps or --epochs"):
        train(make(run, resume=True, **constant))
    with pytest.raises(PQMError, match="started for 12 steps, and these options ask for 9"):
        train(make(run, resume=True, **(constant | {"max_steps": 9})))


@pytest.mark.processes
def test_an_extended_run_is_killed_at_its_end(make, whole, tmp_path):
    """Its metrics and picture are not those of the shorter run."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    killed(make(run, resume=True, max_steps=STEPS + 1), "write_json", 1)
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == STEPS + 1  # the final evaluation was done
    assert not any((run / name).exists() for name in ("metrics.json", "training.png"))
    train(make(run, resume=True, max_steps=STEPS + 1))
    rows, metrics, _ = outcome(run)
    assert rows[-1] == {"kind": "eval", "step": STEPS + 1, **metrics}
    assert (run / "training.png").exists()


def test_an_extended_run_has_the_learning_rate_of_its_new_length(make, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with monkeypatch.context() as patch:
        before(patch, "train_step", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            train(make(run, resume=True, max_steps=20))
    assert not (run / "config.json").exists()  # it describes weights that will be replaced
    train(make(run, resume=True, max_steps=20))
    rates = {row["step"]: row["learning_rate"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"}
    for step in range(1, 21):
        length = make(run, max_steps=12 if step <= 12 else 20)
        assert rates[step] == schedule.learning_rate(step - 1, length.max_steps, length)
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    train(make(again, resume=True, max_steps=20))
    assert outcome(again) == outcome(run)


# ---- metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.fault(
    "lines of metrics.jsonl are damaged, cut off or not metrics",
    how="bytes of a line are changed; a line is cut off; other lines are added",
    lost="those lines",
    recovers="every intact line is kept and read",
)
@pytest.mark.parametrize(("end", "reported"), [(b"", 3), (b"\n", 4)])  # a last line without a line feed was cut off
def test_intact_lines_of_metrics_are_kept(make, cut, capsys, end, reported):
    file = cut / "metrics.jsonl"
    start, *lines = file.read_bytes().splitlines()
    intact = read_metrics(file)
    lines[2] = lines[2][:20]
    lines[4] = lines[4].replace(b"loss", b"l\xffss")
    others = [b'{"note": "mine"}', b"[1]", b"7", b'{"kind": "train"}', b'{"kind": 3, "step": "x"}', b"[" * 10**5]
    file.write_bytes(b"\n".join([start, *lines[:6], *others, *lines[6:], b'{"kind": "tra']) + end)
    expected = [row for i, row in enumerate(intact) if i not in (2, 4)]
    assert read_metrics(file) == expected
    train(make(cut, resume=True))
    assert f"{file}: {reported} damaged lines were taken out" in capsys.readouterr().out
    assert b'{"note": "mine"}\n' in file.read_bytes()
    assert [row["step"] for row in read_starts(file)] == [0, 10]
    assert [row for row in read_metrics(file) if row["step"] <= 10] == [row for row in expected if row["step"] <= 10]


def test_damaged_metrics_are_drawn(cut):
    file = cut / "metrics.jsonl"
    file.write_bytes(
        file.read_bytes().replace(b"loss", b"l\xffss", 3) + b'{"kind": "train", "step": 99, "loss": "x"}\n[1]\n'
    )
    curve.draw_curve(cut)
    [run] = find_runs([str(cut)])
    assert len(run.metrics) == len(read_metrics(file))
    file.unlink()
    with warnings.catch_warnings(action="error"):
        curve.draw_curve(cut)


def test_the_final_evaluation_has_a_bar(make, tmp_path, capsys):
    train(make(tmp_path / "run", max_steps=2, save_every=0, progress=True))
    said = capsys.readouterr().err
    assert "evaluation:" in said
    assert "/24 [" in said
