"""What a reproduction takes over from its folder: trainings and scores of the same options and weights only."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from published_files import command_line
from safetensors.torch import load_file, save_file

from pqm_fast.cli import main
from pqm_fast.common.lock import locked
from pqm_fast.errors import PQMError
from pqm_fast.reproduce import run as reproduce_run
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.reproduce.protocol import Member, begins, check_run, train_config
from pqm_fast.train.run_files import resumes

ONE = {"losses": ("bce",), "zetas": ()}
POOLS = ("gsm-weak-6", "math-strong-6", "math-weak-6")


@pytest.fixture
def out(finished, tmp_path):
    """A copy of a finished reproduction."""
    return shutil.copytree(finished[0], tmp_path / "out")


@pytest.fixture
def counted(monkeypatch):
    """The trainings and scores that are made, by name."""
    made = []
    train, score = reproduce_run.train, reproduce_run.score
    monkeypatch.setattr(reproduce_run, "train", lambda c, ranks: made.append(c.folder.name) or train(c, ranks))
    monkeypatch.setattr(
        reproduce_run, "score", lambda c, ranks: made.append("/".join(c.out.split("/")[-2:])) or score(c, ranks)
    )
    return made


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"loss": "mse"}, r"loss \('mse' then, 'bce' now\)"),
        ({"learning_rate": 1.0}, r"learning_rate \(1.0 then, 0.01 now\)"),
        ({"max_steps": 2}, r"max_steps \(2 then, 3 now\)"),
        ({"data": ["x.jsonl"]}, r"data \(\['x.jsonl'\] then, "),
        ({"model": "other"}, r"model \('other' then, "),
        ({"seed": 5}, r"seed \(5 then, 0 now\)"),
        ({"eval_fraction": 0.1, "clip": 2.0}, r"eval_fraction \(0.1 then, 0.0 now\), clip \(2.0 then, 1.0 now\)"),
        ({"accumulation": 3}, r"micro_batches \(3 then, 2 now\)"),
    ],
)
@pytest.mark.parametrize("is_finished", [True, False])
def test_another_training_is_not_taken_for_it(out, world, other, message, is_finished):
    config, member = ReproduceConfig("pqm", out=str(out), **(world | ONE)), Member("bce", None)
    folder = member.run(config)
    if not is_finished:
        (folder / "config.json").unlink()
    stored = json.loads(json.dumps(train_config(config, member).to_store()))
    (folder / "config.yaml").write_text(json.dumps(stored), encoding="utf-8")
    check_run(config, member)
    (folder / "config.yaml").write_text(json.dumps(stored | other), encoding="utf-8")
    with pytest.raises(PQMError, match=f"{folder}: holds a training with other options: {message}"):
        check_run(config, member)


@pytest.mark.parametrize(
    "same", [{"device": "cuda"}, {"save_every": 7}, {"progress": True}, {"epochs": 9.0}, {"zeta": 3.0}]
)
def test_options_that_change_nothing(out, world, same):
    config, member = ReproduceConfig("pqm", out=str(out), **(world | ONE)), Member("bce", None)
    stored = json.loads(json.dumps(train_config(config, member).to_store()))
    (member.run(config) / "config.yaml").write_text(json.dumps(stored | same), encoding="utf-8")
    check_run(config, member)


@pytest.mark.parametrize(
    ("file", "message"), [("config.yaml", "missing or damaged"), ("metrics.jsonl", "does not say")]
)
def test_a_training_that_does_not_say_how_it_was_made(out, world, file, message):
    config, member = ReproduceConfig("pqm", out=str(out), **(world | ONE)), Member("bce", None)
    (member.run(config) / file).unlink()
    with pytest.raises(PQMError, match=f"{file}: {message}"):
        check_run(config, member)


def test_a_run_by_hand_is_gone_on_from(reproduce, world, tmp_path, counted, capsys):
    """Nothing else is in the folder yet; a wrong option can be corrected."""
    folder = tmp_path / "out" / "runs" / "bce"
    shared = {name: world[name] for name in ("model", "data", "cache_dir", "max_steps", "learning_rate", "device")}
    shared |= {"micro_batch_tokens": 128, "accumulation": 2, "warmup_fraction": 0.1, "loss": "bce"}
    own = {"eval_fraction": 0.0, "eval_every": 0, "skip_bad": True, "progress": False}
    template = ["--prompt-format", "[INST] {prompt} [/INST]", "--step-format", r"\n{step} ", "--step-token", "[PRM]"]
    assert main(["train", "--out", str(folder), *command_line(shared | own), *template]) == 0
    assert reproduce(**ONE, seed=1) == 1
    assert "runs/bce: holds a training with other options: seed (0 then, 1 now)" in capsys.readouterr().err
    assert reproduce(**ONE) == 0
    assert counted == [f"bce/{name}.jsonl" for name in POOLS]


def test_scores_are_those_of_the_weights(out, reproduce, counted):
    weights = out / "runs" / "bce" / "model.safetensors"
    before = {name: (out / "scores" / "bce" / f"{name}.jsonl").read_text() for name in POOLS}
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    (out / "runs" / "bce" / "SHA256SUMS").unlink()  # with it, other weights are refused as damaged
    (out / "scores" / "orm" / "gsm-weak-6.scored-from.json").unlink()
    assert reproduce() == 0
    assert counted == [*(f"bce/{name}.jsonl" for name in POOLS), "orm/gsm-weak-6.jsonl"]
    for name, text in before.items():
        assert (out / "scores" / "bce" / f"{name}.jsonl").read_text() != text
    counted.clear()
    assert reproduce() == 0
    assert counted == []


def test_a_run_that_another_process_trains_stays(tmp_path):
    folder = tmp_path / "run"
    with locked(folder, "train", folder=True):
        (folder / "config.yaml").touch()
        with pytest.raises(PQMError, match=r"run: `pqm-fast train` \(process \d+ .* writes there; wait for it"):
            resumes(folder)
        assert (folder / "config.yaml").exists()
    assert not resumes(folder)
    assert not folder.exists()


def test_options_are_refused_before_anything_is_done(reproduce, tmp_path, capsys):
    for options, message in (({"score_tokens": 0}, "score_tokens: 0 was given"), ({"zetas": (2, -1)}, "zeta: -1")):
        assert reproduce(**options) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_processes_must_divide_a_step_only_of_a_training_that_begins(out, world, monkeypatch):
    taken = []
    monkeypatch.setattr(reproduce_run, "estimate", None)
    monkeypatch.setattr(reproduce_run, "train", lambda config, ranks: taken.append(config))
    monkeypatch.setattr(reproduce_run, "score", lambda config, ranks: None)
    monkeypatch.setattr(reproduce_run, "_written", lambda *_: {"done": True})
    ranks = SimpleNamespace(world=3, first=True, from_first=lambda make: make())
    config = ReproduceConfig("pqm", out=str(out), **(world | ONE))
    assert reproduce_run.reproduce(config, ranks) == {"done": True}
    (out / "runs" / "bce" / "config.json").unlink()
    assert not begins(config, Member("bce", None))
    assert reproduce_run.reproduce(config, ranks) == {"done": True}
    [resumed] = taken
    assert (resumed.resume, resumed.accumulation) == (True, 2)
    with pytest.raises(PQMError, match="micro_batches: 2 cannot be divided evenly among 3 processes"):
        reproduce_run.reproduce(ReproduceConfig("pqm", out=str(out), **(world | ONE | {"losses": ("mse",)})), ranks)


def test_different_margins_have_different_folders():
    names = [Member("rank", zeta).name for zeta in (2.0, 2.0000001, 0.5, 1e-7)]
    assert names == ["rank-zeta2", "rank-zeta2.0000001", "rank-zeta0.5", "rank-zeta1e-07"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, text) for name in ("estimate.json", "reproduction.json") for text in ("", "[1]", "{")),
        ("estimate.json", '{"device": "cpu"}'),
        ("pools/left_out.json", "x"),
    ],
)
def test_damaged_files(out, world, name, text, capsys):
    (out / name).write_text(text, encoding="utf-8")
    assert main(["reproduce", "pqm", "--out", str(out), *command_line(world), "--estimate-only"]) == 1
    assert f"{out / name}: damaged" in capsys.readouterr().err


def test_what_was_left_out_is_on_the_page(reproduce, world, tmp_path):
    """Records that cannot be read or are too long, and solutions that do not fit the context."""
    lines = Path(world["data"][0]).read_text(encoding="utf-8").splitlines()
    long = "w3 " + "\n".join(f"Step {k}: {'w4 ' * 50}ки" for k in (1, 2))
    lines += [json.dumps({"input": long, "label": long.replace("ки", "+")}), '{"input": 5}']
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    [row] = [{"question": "gsm w20", "responses": [{"text": f"w5 Step 2: {'w6 ' * 200}"}, {"text": "w7"}]}]
    (tmp_path / "pool.json").write_text(json.dumps([row]), encoding="utf-8")
    options = {"data": (str(tmp_path / "data.jsonl"),), "pools": (str(tmp_path / "pool.json"),), "n": (1, 2)}
    gsm = shutil.copy(world["answers"][1], tmp_path / "GSM-Plus.jsonl")
    assert reproduce(**ONE, **options, max_length=100, answers=(str(gsm),)) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    trained = found["trained_on"]["bce"]
    assert (trained["trajectories"], trained["cut"]) == (31, 1)
    assert "skipped 1 bad record" in trained["notes"][0]
    assert found["unfit"] == {"pool": {"solutions": 2, "cut": 1, "unscored": 0}}
    page = (tmp_path / "out" / "reproduce.md").read_text(encoding="utf-8")
    assert "| bce | 31 | 11 | 1 |" in page
    assert all(note in page for note in trained["notes"])
    assert "pool: 1 of 2 solutions do not fit the context and lose steps, 0 of them all steps." in page
    assert "8 variations of each of 300 questions" in page
