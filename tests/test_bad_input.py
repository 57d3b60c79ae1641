"""Bad input, end to end: one clear message, a non-zero exit code, and nothing half-written."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
from part_file import rows_in
from pqm_kernels import LOSSES
from safetensors.torch import load_file, save_file

from pqm_fast.cli import main
from pqm_fast.common.journal import Journal
from pqm_fast.data.dataset import TrajectoryDataset
from pqm_fast.train.metrics_file import read_metrics

GOOD = [
    {"id": f"g{i}", "prompt": f"w3 w{4 + i}", "completions": ["w5 w6", f"w{20 + i}"], "labels": [1, i % 2]}
    for i in range(6)
]
COMMANDS = ["train", "score"]
SHARD = "shard-00001-model-00001-of-00001.safetensors"


def write(path: Path, rows: list) -> Path:
    """One line for each row: text as it stands, anything else as JSON."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """The pictures of the trainings, which take longer than these trainings."""
    monkeypatch.setattr("pqm_fast.train.loop.draw_curve", lambda folder: None)


def in_turn(cases):
    """(command, case) for each case: what reads the input is the same for both commands."""
    return [(COMMANDS[i % 2], case) for i, case in enumerate(cases)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`model` (a config and a tokenizer), `data` (good records) and `run`, a checkpoint trained from them."""
    folder = tmp_path_factory.mktemp("world")
    tiny.model_folder(folder / "model", num_hidden_layers=2)
    write(folder / "data.jsonl", GOOD)
    assert main(train(folder, out=folder / "run", cache=folder / "cache", max_steps=2, save_every=1)) == 0
    return folder


def train(world, *more, model=None, data=None, out, cache, **options):
    defaults = {"max_steps": 2, "max_length": 64, "micro_batch_tokens": 64, "eval_fraction": 0.3, "device": "cpu"}
    named = [f"--{k.replace('_', '-')}={v}" for k, v in (defaults | options).items()]
    paths = ["--model", model or world / "model", "--data", data or world / "data.jsonl", "--out", out]
    return ["train", *map(str, paths), *named, "--no-progress", "--cache-dir", str(cache), *map(str, more)]


@pytest.fixture
def command(world, tmp_path):
    """The arguments of `train` or `score`, both of which write to tmp_path/out."""

    def make(name, *more, model=None, data=None, **options):
        if name == "train":
            cache = tmp_path / "cache"
            out = options.pop("out", tmp_path / "out")
            return train(world, *more, model=model, data=data, out=out, cache=cache, **options)
        model, data = model or world / "run", data or world / "data.jsonl"
        named = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
        paths = map(str, ("--model", model, "--data", data, "--out", tmp_path / "out"))
        return ["score", *paths, "--device", "cpu", "--no-progress", *named, *map(str, more)]

    return make


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder but the cache, which may gain a whole entry and never a part of one."""
    paths = [p for p in sorted(folder.rglob("*")) if p.relative_to(folder).parts[0] != "cache"]
    assert not [p for p in folder.rglob("*") if "tmp-" in p.name]
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


@pytest.fixture
def fails(capfd, tmp_path):
    """Runs a command that must fail with one message that holds every one of `parts`, and leave no trace."""

    def run(arguments, *parts):
        before = snapshot(tmp_path)
        capfd.readouterr()
        code = main([str(a) for a in arguments])
        captured = capfd.readouterr()
        assert code == 1, captured
        assert captured.err.startswith("pqm-fast: error: "), captured.err
        assert captured.err.count("error:") == 1, captured.err
        assert "Traceback" not in captured.out + captured.err
        for part in parts:
            assert str(part) in captured.err
        assert snapshot(tmp_path) == before
        return captured.err

    return run


# ---- records --------------------------------------------------------------------------------------------------------

BAD_LINES = {
    "no JSON": ('{"prompt": "w3", ', "not JSON", "write one JSON object per line"),
    "no object": ("[1, 2]", "[1, 2] is not a JSON object"),
    "a field missing": ({"id": "bad", "prompt": "w3"}, "(record bad)", "(id, prompt) do not fit trl", "completions"),
    "an empty field": ({"id": "bad", "prompt": None, "completions": ["w4"]}, "(record bad)", "do not fit trl"),
    "of another type": ({"id": "bad", "prompt": 3, "completions": ["w4"]}, "prompt is 3 (int); it must be text"),
    "fewer labels than steps": (
        {"id": "bad", "prompt": "w3", "completions": ["w4", "w5"], "labels": [True]},
        "(record bad)",
        "1 labels for 2 steps; give one label per step",
    ),
    "more labels than steps": (
        {"id": "bad", "prompt": "w3", "completions": ["w4"], "labels": [True, False]},
        "2 labels for 1 steps",
    ),
    **{
        f"label {label}": (
            {"id": "bad", "prompt": "w3", "completions": ["w5", "w4"], "labels": [1, label]},
            "(record bad)",
            "label 2 is",
            "give true, false, a number from 0 to 1",
        )
        for label in (2, -0.5, 1.0000001, "yes", float("nan"), float("inf"), [1])
    },
    "an empty step": ({"id": "bad", "prompt": "w3", "completions": ["w4", " \n"]}, "step 2 of 2 is empty; remove it"),
    "a step that is no text": ({"id": "bad", "prompt": "w3", "completions": [4]}, "step 1 is 4 (int)"),
    "no steps": ({"id": "bad", "prompt": "w3", "completions": [], "labels": []}, "there are no steps; give at least"),
    "an empty question": ({"id": "bad", "prompt": " ", "completions": ["w4"]}, "the question is empty"),
    "an id twice": ({**GOOD[0], "prompt": "w9"}, "the id g0 is taken by", "line 1; give each record its own"),
}


@pytest.mark.parametrize(("name", "case"), in_turn(BAD_LINES))
def test_bad_line(command, fails, tmp_path, name, case):
    line, *parts = BAD_LINES[case]
    data = write(tmp_path / "bad.jsonl", [*GOOD[:2], line, *GOOD[2:]])
    fails(command(name, data=data), f"{data}, line 3", *parts)


UNENCODABLE = {
    "a step token in the question": (
        {"id": "bad", "prompt": "w3 <|step|> w4", "completions": ["w5"], "labels": [1]},
        "the step token '<|step|>' occurs in its question; choose another with --step-token",
    ),
    "a step token in a step": (
        {"id": "bad", "prompt": "w3", "completions": ["w5", "w6<|step|>"], "labels": [1, 1]},
        "the step token '<|step|>' occurs in one of its steps",
    ),
}
# Nothing to train on; to be scored they are solutions like others, which nobody prefers.
OVER_LONG = {
    "a question longer than the context": (
        {"id": "bad", "prompt": "w3 " * 200, "completions": ["w5"], "labels": [1]},
        "the question and its first step (202 tokens) exceed the limit of 64 tokens; raise --max-length",
    ),
    "a first step that does not fit": (
        {"id": "bad", "prompt": "w3 " * 63, "completions": ["w5"], "labels": [1]},
        "the question and its first step (65 tokens) exceed the limit of 64 tokens",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("case", UNENCODABLE)
def test_record_that_cannot_be_encoded(command, fails, tmp_path, name, case):
    row, part = UNENCODABLE[case]
    data = write(tmp_path / "bad.jsonl", [*GOOD, row])
    fails(command(name, data=data, max_length=64), data, "record bad", part)


@pytest.mark.parametrize("case", OVER_LONG)
def test_record_too_long_to_train_on(command, fails, tmp_path, case):
    row, part = OVER_LONG[case]
    data = write(tmp_path / "bad.jsonl", [*GOOD, row])
    fails(command("train", data=data, max_length=64), data, "record bad", part)


@pytest.mark.parametrize(("limit", "said"), [(64, "64 tokens (--max-length)"), (None, "128 tokens (the model)")])
def test_over_long_candidates_stay_in_the_pool(command, capfd, tmp_path, limit, said):
    """Unpreferred: `score` and `evaluate --model` keep them, with null for every step, and say which limit they met."""
    long = " ".join(["w7"] * 130)
    texts = ["w5 \nA: 4", long, f"w5\n{long}", "w6 \nA: 4"]
    pool = {"question": "w3 w4", "question_id": "q", "answer": "4", "responses": [{"text": t} for t in texts]}
    hopeless = {"question": long, "question_id": "h", "answer": "4", "responses": [{"text": "A: 4"}]}
    data = write(tmp_path / "pool.jsonl", [pool, hopeless])
    options = {} if limit is None else {"max_length": limit}
    assert main(command("score", data=data, **options)) == 0
    text = f"3 records do not fit {said}: the scores of their last steps are null, "
    text += "and 2 of these records have no score at all"
    assert text in capfd.readouterr().out
    scores = [json.loads(line)["scores"] for line in (tmp_path / "out").read_text().splitlines()]
    assert [[q is None for q in own] for own in scores] == [[False, False], [True], [False, True], [False] * 2, [True]]

    found, out = [], tmp_path / "result.json"
    for source in (["--data", tmp_path / "out"], command("evaluate", data=data, **options)[1:]):
        assert main(["evaluate", *map(str, source), "--out", str(out)]) == 0
        found.append(json.loads(out.read_text()))
    assert text in found[1]["left_out"]
    for result in found:
        overall = result["overall"]
        assert (overall["candidates"], overall["mean_accuracy"]["mean"]) == (5, pytest.approx((2 / 4 + 1) / 2))
        for best in overall["best_of_n"].values():
            assert best["4"]["mean"] == 1.0  # of the two that are scored to the end
        assert "2 candidates without a scored step: kept, and never preferred" in result["left_out"]
    (tmp_path / "out").unlink()
    assert main(command("score", data=write(tmp_path / "pool.jsonl", [hopeless]), **options)) == 0
    assert f"1 record does not fit {said}: the scores of its steps are null\n" in capfd.readouterr().out
    assert main(["evaluate", "--data", str(tmp_path / "out"), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["overall"]["best_of_n"]["min"]["1"]["mean"] == 1.0


def test_training_needs_labels(command, fails, tmp_path):
    unlabelled = {"id": "bad", "prompt": "w3", "completions": ["w4", "w5"]}
    for row in (unlabelled, unlabelled | {"labels": [None, None]}):
        data = write(tmp_path / "bad.jsonl", [*GOOD, row])
        fails(command("train", data=data), data, "record bad: no step has a label", "--skip-bad")


@pytest.mark.parametrize("loss", [n for n, loss in LOSSES.items() if not (loss.soft_labels or loss.uses_outcomes)][::4])
def test_soft_labels_for_a_loss_of_hard_ones(command, fails, tmp_path, loss):
    data = write(tmp_path / "bad.jsonl", [*GOOD, GOOD[0] | {"id": "bad", "labels": [0.25, 1]}])
    fails(command("train", data=data, loss=loss), data, "record bad: label 0.25", loss, "--label-threshold 0.5")


# ---- sources --------------------------------------------------------------------------------------------------------


def parquet(path: Path) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), path)
    return path.read_bytes()


SOURCES = {
    "missing": (None, "no file or folder of this name; check it"),
    "empty": (b"", "no usable record: it is empty"),
    "blank": (b"\n\n", "no usable record: it is empty"),
    "binary": (b"\x93\xff\x00\n", "line 1: byte 1 (0x93) is not UTF-8; convert the file to UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00\x00", "cannot be read"),
    "list": (b'[{"prompt": "w3",\n "completions"', "line 2: damaged JSON list"),
    "parquet": (b"PAR1" + bytes(20), "damaged Parquet file"),
    "unknown": (b'{"text": "w3", "score": 1}\n', "line 1: fields text, score are of no known format"),
}


@pytest.mark.parametrize(("name", "case"), in_turn(SOURCES))
def test_source_that_cannot_be_read(command, fails, tmp_path, name, case):
    content, part = SOURCES[case]
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_bytes(content)
    fails(command(name, data=data), data, part)


@pytest.mark.parametrize("name", COMMANDS)
def test_other_sources_that_cannot_be_read(command, fails, tmp_path, name):
    fails(command(name, data="nobody/nothing"), "nobody/nothing: no such file or folder", "check the name")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "data.jsonl", GOOD)
    (tmp_path / "folder" / "more.csv").write_text("a,b")
    fails(command(name, data=tmp_path / "folder"), tmp_path / "folder", "holds more.csv, which is not a data file")
    fails(command(name, data=tmp_path / "*.txt"), "*.txt: matches no file")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(parquet(tmp_path / "whole.parquet")[:-30])
    fails(command(name, data=cut), cut, "damaged Parquet file")
    # the second of two files
    fails(
        [*command(name), "--data", tmp_path / "folder" / "data.jsonl", tmp_path / "gone.jsonl"], "gone.jsonl: no file"
    )
    fails([*command(name), "--data"], "no source is named")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_usable_record_at_all(command, fails, tmp_path, name):
    """Neither where reading skips them all, nor where encoding does."""
    data = write(
        tmp_path / "bad.jsonl", [line for line, *_ in BAD_LINES.values() if line != BAD_LINES["an id twice"][0]]
    )
    fails(command(name, "--skip-bad", data=data), data, "no usable record: all are bad, the first", "line 1")
    bad = UNENCODABLE | OVER_LONG if name == "train" else UNENCODABLE
    data = write(tmp_path / "bad.jsonl", [row | {"id": str(i)} for i, (row, _) in enumerate(bad.values())])
    message = fails(
        command(name, "--skip-bad", data=data, max_length=64), data, f"no usable record. skipped {len(bad)} bad records"
    )
    assert "2 step token in the text" in message
    assert ("2 question longer than the context" in message) == (name == "train")


# ---- models ---------------------------------------------------------------------------------------------------------


def broken_model(kind: str, world: Path, path: Path) -> Path:
    """A model folder with one fault."""
    if kind == "nowhere":
        return path
    if kind == "file":
        path.write_text("{}")
        return path
    path.mkdir()
    if kind == "empty":
        return path
    if kind.startswith("without tokenizer"):
        tiny.config(kind.split()[-1], num_hidden_layers=2).save_pretrained(path)
        return path
    # without the checksums, by which any change would be known
    left_out = shutil.ignore_patterns("checkpoints", "SHA256SUMS")
    shutil.copytree(world / "run", path, dirs_exist_ok=True, ignore=left_out)
    config = json.loads((path / "config.json").read_text())
    if kind == "config that is no JSON":
        (path / "config.json").write_text('{"model_type": ')
    elif kind == "config of a wrong type":
        (path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    elif kind == "unknown architecture":
        (path / "config.json").write_text(json.dumps(config | {"model_type": "abacus"}))
    elif kind == "encoder":
        (path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 32}))
    elif kind == "another architecture":
        (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    elif kind == "another width":
        (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    elif kind == "cut weights":
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif kind == "NaN weights":
        weights = load_file(path / "model.safetensors")
        weights["model.norm.weight"][3] = float("nan")
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


MODELS = {
    "nowhere": "no such folder; check the path (hub ids are written org/name)",
    "file": "is a file; name the folder of the model",
    "empty": "no config.json in this folder, so it holds no model",
    "config that is no JSON": "not a valid JSON file",
    "config of a wrong type": "hidden_size",
    "unknown architecture": "abacus",
    "encoder": "bert is not a decoder (causal) architecture",
    "another architecture": "do not fit the architecture llama that its config.json names: 9 tensors are missing",
    "another width": "6 tensors are of another shape, such as model.layers.0.mlp",
    "cut weights": "this model cannot be loaded",
    "NaN weights": "a weight is NaN or infinite",
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", MODELS)
def test_model_that_cannot_be_used(command, fails, world, tmp_path, name, kind):
    model = broken_model(kind, world, tmp_path / "broken")
    fails(command(name, model=model), model, MODELS[kind])


@pytest.mark.parametrize("name", ["./x", "../x/y", "~/x", "runs/a/b", "runs/x/", "x y", "C:\\models", ""])
def test_a_path_of_no_model_is_not_asked_for_on_the_hub(command, fails, tmp_path, name):
    said = "model: empty; name a folder or a hub id" if not name else f"{name}: no such folder; check the path"
    options = [f"--model={name}"]
    fails([*command("train"), *options], said)
    fails([*command("score"), *options], said)
    questions = write(tmp_path / "q.jsonl", [{"id": "q", "question": "w3", "answer": "w4"}])
    sample = ["sample", f"--policy={name}", "--data", questions, "--out", tmp_path / "pool"]
    fails(sample, said if name else "policy: empty")
    fails(["annotate", *sample[1:]], said if name else "policy: empty")


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--model", "https://u:SECRET@h/m"),
        ("--data", "https://u:SECRET@h/m"),
        ("--policy", "u:SECRET@host:80/v1#m"),
        ("--policy", "http://h/v1?key=SECRET#m"),
        ("--model", "http://u:SE/SECRET@h/v1"),
        ("--data", "s3://SECRET@h/m"),
    ],
)
def test_credentials_in_a_name_are_not_shown(capfd, tmp_path, name, option):
    command = {
        "--policy": ["sample", "--data", tmp_path],
        "--model": ["score", "--data", tmp_path],
        "--data": ["evaluate"],
    }[option]
    (tmp_path / "questions.jsonl").write_text('{"question": "w3"}\n')
    assert main([*map(str, command), option, name, "--out", str(tmp_path / "out")]) == 1
    error = "".join(capfd.readouterr())
    assert "SECRET" not in error
    assert "***" in error


@pytest.mark.parametrize("name", ["runs/x", "nobody/nothing", "nothing"])
def test_what_may_be_a_hub_id_is_called_both(command, fails, tmp_path, name):
    said = f"{name}: no such folder, and no model config could be loaded for it as a hub id either: "
    fails([*command("train"), f"--model={name}"], said)
    fails([*command("score"), f"--model={name}"], said)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma"])
def test_model_folder_without_tokenizer(command, fails, world, tmp_path, architecture):
    """Of some architectures transformers would make up a tokenizer that knows no word."""
    model = broken_model(f"without tokenizer {architecture}", world, tmp_path / "broken")
    fails(command("train", model=model), model, "no tokenizer could be loaded; copy the tokenizer's files")


def test_checkpoint_without_tokenizer(command, fails, world, tmp_path):
    model = broken_model("whole", world, tmp_path / "broken")
    for file in model.glob("tokenizer*"):
        file.unlink()
    fails(command("score", model=model), model, "no tokenizer could be loaded")


def test_tokenizer_of_another_model(command, fails, tmp_path):
    model = tiny.model_folder(tmp_path / "small", vocab_size=50, num_hidden_layers=2)
    for step_token in ("last", "<|step|>"):
        fails(
            command("train", model=model, step_token=step_token), model, "ids up to 89 but the embedding only 50 rows"
        )


def test_scoring_needs_a_checkpoint_of_ours(command, fails, world, tmp_path):
    fails(command("score", model=world / "model"), world / "model", "not a checkpoint of pqm-fast", "pqm-fast train")
    damaged = broken_model("whole", world, tmp_path / "damaged")
    config = json.loads((damaged / "config.json").read_text())
    for entry in ({}, {"template": {"step": "x"}, "loss": "rank", "zeta": 4.0}):
        (damaged / "config.json").write_text(json.dumps(config | {"pqm_fast": entry}))
        fails(command("score", model=damaged), damaged, "'pqm_fast' entry of config.json is damaged")
    headless = broken_model("whole", world, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "score" not in k}, headless / "model.safetensors", {"format": "pt"})
    fails(command("score", model=headless), headless, "not a whole checkpoint: the Q-value head is new")


# ---- the run folder and the file of scores --------------------------------------------------------------------------


def test_output_that_is_there_already(command, fails, world, tmp_path):
    out = tmp_path / "out"
    out.write_text("precious")
    fails(command("train"), out, "is a file, or below one; choose another --out")
    fails(command("score"), out, "exists already; delete it or choose another --out")
    fails([*command("train"), "--out", out / "below"], out, "is a file, or below one")
    fails([*command("score"), "--out", out / "below"], out)
    out.unlink()
    out.mkdir()
    fails(command("score"), out, "is a folder; name a file to write")
    (out / "mine.txt").write_text("precious")
    fails(command("train"), out, "is not empty; choose another --out")
    shutil.copytree(world / "run", out, dirs_exist_ok=True)
    fails(command("train"), out, "already holds a run; choose another --out, or --resume to continue the run in it")


def test_nothing_to_resume(command, fails, tmp_path):
    out = tmp_path / "out"
    fails(command("train", "--resume"), out, "no run to resume here (no config.yaml); start it without --resume")
    out.mkdir()
    fails(command("train", "--resume"), out, "no run to resume here")


@pytest.fixture
def interrupted(world, tmp_path):
    """A copy of a run in tmp_path/out, whose model folder is a copy too, as if it had stopped after its first step."""
    model = shutil.copytree(world / "model", tmp_path / "model")
    options = {"out": tmp_path / "out", "model": model, "cache": tmp_path / "cache", "save_every": 1}
    assert main(train(world, **options)) == 0
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-0000002")
    (tmp_path / "out" / "config.json").unlink()  # the last thing a run writes
    return lambda *more, **changes: train(world, "--resume", *more, **(options | changes))


def test_resume_with_other_options(interrupted, fails, world, tmp_path):
    different = f"{tmp_path / 'out'}: --resume needs the options of the run itself; different: "
    fails(interrupted(learning_rate=0.5), different + "learning_rate (1e-05 then, 0.5 now)", "Pass --config")
    fails(interrupted(model=world / "model"), different + "model")
    fails(interrupted(step_token="last"), different + "template")
    fails(interrupted("--skip-bad"), different + "read")
    fails(interrupted(data=tmp_path / "other.jsonl"), different + "data")


def test_resume_with_another_architecture(interrupted, fails, tmp_path):
    tiny.model_folder(tmp_path / "model", num_hidden_layers=1)
    message = (
        "is not the model that the run was started with: config.json: num_hidden_layers (2 then, 1 now); put it back"
    )
    fails(interrupted(), tmp_path / "model", message)


def test_resume_from_a_damaged_checkpoint(interrupted, fails, tmp_path):
    path = tmp_path / "out" / "checkpoints" / "step-0000001" / SHARD
    path.write_bytes(path.read_bytes()[:10])
    fails(
        interrupted(),
        path.parent,
        "every checkpoint is damaged",
        f"{SHARD} or SHA256SUMS has changed since it was written",
    )


def test_resume_with_a_damaged_config(interrupted, fails, tmp_path, capfd):
    """Checkpoints hold the options too, with a checksum: config.yaml is written again from there."""
    file, checkpoints = tmp_path / "out" / "config.yaml", tmp_path / "out" / "checkpoints"
    whole = file.read_text()
    bad = (
        "model: [",
        "",
        "- a",
        whole.replace("learning_rate: 1.0e", "learning_rate: 3.0e"),
        whole.replace("seed", "sead"),
    )
    for text in (*bad, None):
        assert text != whole
        file.unlink() if text is None else file.write_text(text)
        mended = f"(1e-05 then, 0.5 now). {file} was damaged, and is written again from step-0000001. Pass --config"
        assert main(interrupted(learning_rate=0.5)) == 1
        assert mended in capfd.readouterr().err
        assert file.read_text() == whole
    file.write_text(bad[3])
    command = ["train", "--config", str(file), "--resume"]
    assert main(command) == 1
    assert f"learning_rate (1e-05 then, 3e-05 now). {file} was damaged" in capfd.readouterr().err
    kept = checkpoints.rename(tmp_path / "kept")
    for text in bad[:3]:
        file.write_text(text)
        fails(interrupted(), file, "damaged, so --resume cannot tell the options of the run")
    kept.rename(checkpoints)
    assert main(interrupted()) == 0
    assert f"{file} was damaged, and is written again from step-0000001\n" in capfd.readouterr().out
    assert file.read_text() == whole


def test_scores_begun_with_something_else(command, fails, world, tmp_path):
    """A file of scores is never continued with another model, other records or a damaged beginning."""
    part = tmp_path / "out.part"
    assert main(command("score")) == 0
    (tmp_path / "out").rename(part)
    fails(command("score"), part, "damaged", "delete it to start over")  # nothing says what it was begun with
    part.unlink()
    model = shutil.copytree(world / "run", tmp_path / "model")
    interrupt(command("score", model=model))
    assert rows_in(part) == 1
    other = write(tmp_path / "other.jsonl", GOOD)
    for changed, arguments in {
        "model": command("score"),
        "data": command("score", model=model, data=other),
        "max_length": command("score", model=model, max_length=50),
        "read": command("score", model=model, format="trl"),
    }.items():
        fails(arguments, f"{part}: was started with other options: {changed} (", "delete it to start over")
    weights = model / "model.safetensors"
    times, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1  # trained again, of the same size, and its time put back
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    fails(command("score", model=model), part, "other options: weights")
    part.write_bytes(b"{" + part.read_bytes())
    fails(command("score", model=model), part, "damaged")


def interrupt(arguments):
    """Runs `score` until it has written its first line."""
    append = Journal.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", lambda *row: append(*row) < 0 or (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(arguments) == 130


# ---- numbers that are none ------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(world, tmp_path):
    """A copy of the trained checkpoint in which the embedding of w21 is NaN: only record g1 holds that word."""
    model = broken_model("whole", world, tmp_path / "poisoned")
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][21] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


def test_nan_in_the_loss(command, poisoned, capfd, tmp_path):
    code = main(command("train", model=poisoned, eval_fraction=0, max_steps=3))
    captured = capfd.readouterr()
    assert code == 1
    assert captured.err.startswith(f"pqm-fast: error: {tmp_path / 'out'}: step 3: loss nan, gradient norm nan; ")
    assert "Q-values are not finite in 1 trajectories: g1. " in captured.err
    assert "Check these records (--exclude leaves them out), or start again with a lower --learn" in captured.err
    assert "Traceback" not in captured.err
    # what the run said until then is there, a checkpoint is not
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.yaml", "metrics.jsonl"]
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [(row["kind"], row["step"], row["records"]) for row in rows] == [("skipped", i, ["g1"]) for i in (1, 2, 3)]


def test_nan_after_a_checkpoint(command, capfd, tmp_path, monkeypatch):
    """What is not finite never reaches a checkpoint."""
    from pqm_fast.train import step

    calls = iter((False, False, *[True] * 9))

    def backward(*arguments, whole=step.backward):
        outputs = whole(*arguments)
        if next(calls):
            outputs[0].loss.fill_(float("inf"))
        return outputs

    monkeypatch.setattr(step, "backward", backward)
    assert main(command("train", max_steps=9, save_every=2)) == 1
    error = capfd.readouterr().err
    assert "step 5: loss inf, gradient norm" in error
    assert "3 steps in a row were left out" in error
    assert "all Q-values are finite" in error
    saved = tmp_path / "out" / "checkpoints" / "step-0000002"
    assert all(tensor.isfinite().all() for tensor in load_file(saved / SHARD).values())
    assert not (tmp_path / "out" / "config.json").exists()


def test_nan_in_the_scores(command, poisoned, fails):
    fails(command("score", model=poisoned), "record g1: Q-values are not finite; check", poisoned)


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *[("train", "max_length", v) for v in (0, -1, 129)],
        *[("score", "max_length", v) for v in (0, -1, 129)],
        ("train", "micro_batch_tokens", 63),  # below max_length
        ("score", "max_tokens", 0),
        *[(name, "device", v) for name in COMMANDS for v in ("abacus", "cuda:77")],
        *[("train", "learning_rate", v) for v in (0, -1e-5, "nan", "inf")],
        *[("train", "zeta", v) for v in (-1, "nan", "inf")],
        *[("train", "epochs", v) for v in (0, "inf")],
        *[("train", name, v) for name in ("eval_fraction", "warmup_fraction") for v in (-0.1, 1)],
        *[("train", "label_threshold", v) for v in (0, 1.5)],
        *[("train", "seed", v) for v in (-1, 2**63)],
        *[("train", "beta1", v) for v in (-0.1, 1)],
        ("train", "beta2", 1),
        *[("train", name, 0) for name in ("max_steps", "accumulation", "log_every", "keep_checkpoints", "eval_limit")],
        *[("train", name, -1) for name in ("warmup_steps", "eval_every", "save_every", "weight_decay", "clip")],
        ("train", "prompt_format", "no place for it"),
        ("train", "prompt_format", "chat"),  # the tokenizer has no chat template
        ("train", "step_format", "{step} {step}"),
        *[(name, "step_marker", " ") for name in COMMANDS],
        *[(name, "label_map", "-1") for name in COMMANDS],
    ],
)
def test_value_out_of_range(command, fails, name, option, value):
    fails(command(name, **{option: value}), f"{option}", value)


def test_empty_step_token(command, fails):
    fails(command("train", step_token=""), "step token: empty; name a token")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "--no-such-option", "1"], "--no-such-option"),
        (["score", "--learning-rate", "1"], "--learning-rate"),
        (["train", "--loss", "dpo"], "dpo"),
        (["train", "--max-steps", "many"], "many"),
        (["train", "--zeta", ""], "--zeta"),
        (["train", "--data", "d", "--field"], "--field: has no value"),
        (["score", "--field", "--skip-bad", "--field", "prompt=q"], "--field: has no value"),
        (["sample", "--policy", "--data", "d"], "--policy: has no value"),
        (["train", "--format", "csv"], "csv"),
        (["train"], "--model"),
        (["evaluate", "--aggregate", "median", "--data", "x"], "median"),
        (["demo", "--steps", "few"], "few"),
        (["trian"], "no command 'trian'"),
        (["--model", "x"], "no command '--model'"),
    ],
)
def test_usage_errors(arguments, part, capfd, tmp_path, monkeypatch):
    """Exit code 2, returned and not raised, with the message on stderr."""
    monkeypatch.chdir(tmp_path)
    rest = ["--model", "m", "--data", "d", "--out", "o"] if arguments[0] in COMMANDS and len(arguments) > 1 else []
    assert main([*arguments, *rest]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert part in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: [a", "line 1"),
        ("\x00", "cannot be read"),
        ("- model", "holds no options"),
        ("loss: bce\nzeta: 2\nloss: rank", "line 3: loss appears for the second time; keep only one"),
        ("template:\n  step_token: a\n  step_token: b", "line 3: step_token appears for the second time"),
        ('{"loss": "bce", "loss": "bce"}', "line 1: loss appears for the second time"),
        ("", "holds no options"),
        ("seed: 2024-13-45", "month must be in 1..12"),
        ("data: &a [*a]", "nested too deeply"),
        pytest.param(
            "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(20)),
            "3,229,379,887,561,996,731 values, aliases included, where at most 100,000 are allowed",
            id="laughs",
            marks=pytest.mark.fault(
                "a file of options is made to fill the memory",
                how="YAML whose aliases stand for 9 to the power of 19 values; lists nested 1,000 deep",
                lost="nothing",
                recovers="refused in one message, before anything is expanded",
            ),
        ),
        pytest.param("data: " + "[" * 1_000, "nested too deeply", id="deep"),
    ],
)
def test_broken_config_file(fails, tmp_path, text, part):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    fails(["train", "--config", file], file, part)


def test_config_file_that_is_none(fails, tmp_path):
    fails(["train", "--config", tmp_path / "nowhere.yaml"], "nowhere.yaml: no such file; check the path")
    fails(["train", "--config", tmp_path], tmp_path, "Is a directory")
    fails(["train", "--config"], "--config: name one file")
    fails(["train", "--config", "a", "--config=b"], "--config: name one file")


@pytest.mark.parametrize("text", ["max_stepz: 3", "log_every: many", "template: {token: x}", "read: csv"])
def test_config_file_with_a_wrong_option_is_named(command, capfd, tmp_path, text):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    assert main([*command("train"), "--config", str(file)]) == 2
    error = capfd.readouterr().err
    assert str(file) in error
    assert f"--{text.split(':')[0].replace('_', '-')}" in error or "--token" in error
    assert not (tmp_path / "out").exists()


# ---- evaluation -----------------------------------------------------------------------------------------------------

SCORED = [row | {"scores": [1.0, None]} for row in GOOD]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (GOOD[0], "no `scores`; run `pqm-fast score` first, or give --model"),
        (GOOD[0] | {"scores": None}, "no `scores`"),
        (GOOD[0] | {"scores": 0.5}, "scores 0.5 for 2 steps; give one per step"),
        (GOOD[0] | {"scores": [1.0]}, "scores [1.0] for 2 steps"),
        (GOOD[0] | {"scores": [1.0, "high"]}, "scores [1.0, 'high']; each must be a finite number"),
        (GOOD[0] | {"scores": [1.0, float("nan")]}, "scores [1.0, nan]"),
        (GOOD[0] | {"scores": [10**400, 1.0]}, "each must be a finite number"),
        (GOOD[0] | {"scores": [float("inf"), 1.0]}, "scores [inf, 1.0]"),
        (SCORED[0] | {"question_id": "q", "correct": "yes"}, "correct is 'yes'; give true, false or a number"),
        (SCORED[0] | {"question_id": "q", "correct": 2}, "correct is 2"),
    ],
)
def test_scores_that_cannot_be_evaluated(fails, tmp_path, row, part):
    data = write(tmp_path / "scored.jsonl", [row | {"id": "bad"}, *SCORED[1:]])
    fails(["evaluate", "--data", data, "--out", tmp_path / "result.json"], data, "record bad", part)


def test_nothing_to_evaluate(fails, tmp_path):
    data = write(tmp_path / "scored.jsonl", [{k: v for k, v in row.items() if k != "labels"} for row in SCORED])
    out = ["--out", tmp_path / "result.json"]
    fails(["evaluate", "--data", data, *out], data, "nothing to evaluate: no record has labels")
    fails(["evaluate", "--data", tmp_path / "gone.jsonl", *out], "gone.jsonl: no file")


# ---- --skip-bad -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """Good records with a bad one of every kind between them. Returns the file, and how many are bad."""
    bad = [line for line, *_ in BAD_LINES.values()] + [row | {"id": case} for case, (row, _) in UNENCODABLE.items()]
    rows = [row for i, line in enumerate(bad) for row in (*GOOD[i : i + 1], line)]
    return write(tmp_path / "mixed.jsonl", rows), len(bad)


KINDS = (
    "7 bad label",
    "2 labels and steps of different length",
    "2 step token in the text",
    "2 another format",
    "1 not JSON",
    "1 not an object",
    "1 no steps",
    "1 empty step",
    "1 empty question",
    "1 duplicate id",
)


def test_skip_bad_while_training(command, mixed, capfd, tmp_path):
    data, bad = mixed
    rows = [*data.read_text().split("\n")[:-1], {"id": "unlabelled", "prompt": "w3", "completions": ["w4"]}]
    write(data, [*rows, *(row | {"id": case} for case, (row, _) in OVER_LONG.items())])
    bad += len(OVER_LONG)
    assert main(command("train", "--skip-bad", data=data)) == 0
    out = capfd.readouterr().out
    assert f"skipped {bad + 1} bad records (" in out
    for kind in (*KINDS, "1 no labels", "2 question longer than the context"):
        assert kind in out
    assert f"{data}, line 2: not JSON" in out  # the first few are shown
    [cached] = (tmp_path / "cache").iterdir()
    dataset = TrajectoryDataset(cached)
    assert [dataset.name(i) for i in range(len(dataset))] == [row["id"] for row in GOOD]
    # the same tokens and labels as of the good ones alone
    assert main(command("train", data=write(tmp_path / "good.jsonl", GOOD), out=tmp_path / "alone")) == 0
    [alone] = [TrajectoryDataset(p) for p in (tmp_path / "cache").iterdir() if p != cached]
    for name, column in alone.columns.items():
        np.testing.assert_array_equal(dataset.columns[name], column, err_msg=name)
    # the summary is there too when the tokens come from the cache
    capfd.readouterr()
    assert main(command("train", "--skip-bad", data=data, out=tmp_path / "again")) == 0
    assert f"skipped {bad + 1} bad records (" in capfd.readouterr().out


def test_skip_bad_while_scoring(command, mixed, capfd, tmp_path):
    data, bad = mixed
    assert main(command("score", "--skip-bad", data=data, max_length=64)) == 0
    out = capfd.readouterr().out
    assert f"skipped {bad} bad records (" in out
    for kind in KINDS:
        assert kind in out
    scored = (tmp_path / "out").read_text()
    (tmp_path / "out").unlink()
    assert main(command("score", max_length=64)) == 0
    assert (tmp_path / "out").read_text() == scored
    assert [json.loads(line)["id"] for line in scored.splitlines()] == [row["id"] for row in GOOD]


def test_skip_bad_while_evaluating(mixed, world, capfd, tmp_path):
    data, bad = mixed
    rows = [json.dumps(row | {"scores": [1.0, -1.0]}) for row in GOOD]
    write(data, [*rows, *[line for line in data.read_text().split("\n")[:-1] if '"g' not in line]])
    unread = bad - len(UNENCODABLE) - 1  # those without tokens are no fault here: they lack scores
    lines = [line for line in data.read_text().split("\n")[:-1] if not any(case in line for case in UNENCODABLE)]
    write(data, lines)
    assert main(["evaluate", "--data", str(data), "--skip-bad", "--out", str(tmp_path / "result.json")]) == 0
    assert f"skipped {unread} bad records (" in capfd.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["records"] == len(GOOD)
    assert result["steps"]["trajectories"] == len(GOOD)
    assert f"skipped {unread} bad records" in result["left_out"][0]


@pytest.mark.parametrize("name", COMMANDS)
def test_records_cut_at_a_step_are_counted(command, capfd, tmp_path, name):
    long = {"id": "long", "prompt": "w3", "completions": ["w4 w5 w6", "w7 w8 w9", "w10 w11 w12"], "labels": [1, 1, 0]}
    data = write(tmp_path / "data.jsonl", [*GOOD, long])
    assert main(command(name, data=data, max_length=9)) == 0
    out = capfd.readouterr().out
    if name == "train":
        assert "1 of 7 records are longer than 9 tokens: their last 1 steps were cut off" in out
    else:
        assert "1 record does not fit 9 tokens (--max-length): the scores of its last steps are null" in out
        last = json.loads((tmp_path / "out").read_text().splitlines()[-1])
        assert [score is None for score in last["scores"]] == [False, False, True]
