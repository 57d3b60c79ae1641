"""The recipe as options of a training, and options that cannot be used."""

import json
import re
import shlex
from pathlib import Path

import pytest
from published_files import command_line
from tiny import tokenizer

from pqm_fast.cli import main
from pqm_fast.data.encode import Encoder, ensure_step_token
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.reproduce.protocol import Member, baseline_of, members, resumed, train_config


def test_the_published_recipe():
    config = ReproduceConfig("pqm")
    assert [member.name for member in members(config)] == ["rank-zeta2", "rank-zeta4", "bce", "mse", "orm"]
    first, *_, last = (train_config(config, member, processes=8) for member in members(config))
    assert (first.loss, first.zeta, last.loss) == ("rank", 2.0, "orm")
    assert (first.model, first.data) == ("deepseek-ai/deepseek-math-7b-base", ("peiyi9979/Math-Shepherd",))
    assert (first.learning_rate, first.warmup_fraction, first.epochs, first.accumulation) == (1e-6, 0.1, 2.0, 4)
    assert (first.beta1, first.beta2, first.weight_decay, first.clip) == (0.9, 0.999, 0.0, 1.0)
    assert first.eval_fraction == 0.0
    assert config.n == (8, 16, 32, 64, 128)
    assert Member("orm", None).aggregate(config) == "last"
    assert Member("rank", 4.0).aggregate(config) == "min"


def test_the_text_is_that_of_the_published_code():
    template = ReproduceConfig("pqm").template
    steps = ["Step 1: a b", "Step 2: c"]
    # train_main.py: "{query}\n{answer}", where the steps of an answer are joined by " [PRM]\n"
    published = "[INST] {q} [/INST]".format(q="q") + "\n" + " [PRM]\n".join(steps) + " [PRM]"
    pieces = "".join(template.step_format.format(step=step) + template.step_token for step in steps)
    assert template.prompt_format.format(prompt="q") + pieces == published
    tokens = tokenizer(90)
    ensure_step_token(tokens, template.step_token)
    [encoded] = Encoder(tokens, template, 100)([Record("r", "q", steps)])
    assert encoded.input_ids.tolist() == tokens(published)["input_ids"]
    assert [tokens.convert_ids_to_tokens(int(encoded.input_ids[i])) for i in encoded.step_tokens] == ["[PRM]"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "prm"}, "protocol: 'prm' is not known; choose one of pqm"),
        ({"losses": ()}, "losses: none is given"),
        ({"losses": ("bce", "bce")}, "losses: one is given twice in bce bce"),
        ({"n": (8, 8)}, "n: one is given twice"),
        ({"n": ()}, "n: none is given"),
        ({"n": (0,)}, "n: 0 was given"),
        ({"zetas": ()}, "zetas: none is given"),
        ({"micro_batches": 0}, "micro_batches: 0 was given"),
        ({"pools": ()}, "pools: none is given"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(PQMError, match=message):
        ReproduceConfig(**({"protocol": "pqm"} | options))


def test_the_command_by_hand_in_the_docs(monkeypatch):
    """It makes the run that `reproduce` goes on from."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "reproduce-pqm.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^torchrun (?:\S+ )+-m pqm_fast train (.*(?:\n    .*)*)$", page, re.MULTILINE)
    seen = []
    monkeypatch.setattr("pqm_fast.train.loop.train", lambda config, ranks: seen.append(config))
    monkeypatch.setattr("pqm_fast.cli._print_commands", lambda checkpoint: None)
    assert main(["train", *shlex.split(command.replace("\\\n", ""))]) == 0
    expected = train_config(ReproduceConfig("pqm"), Member("rank", 4.0), processes=8)
    named, stored = (config.to_store() for config in (seen.pop(), expected))
    free = {"save_every", "keep_checkpoints"}
    assert {k: v for k, v in named.items() if k not in free} == {k: v for k, v in stored.items() if k not in free}


@pytest.mark.parametrize(
    ("options", "baseline"),
    [
        ({}, "bce"),
        ({"baseline": "rank-zeta4"}, "rank-zeta4"),
        ({"baseline": "rank", "zetas": (4.0,)}, "rank-zeta4"),
        ({"losses": ("rank",), "zetas": (4.0,)}, None),
    ],
)
def test_the_baseline(options, baseline):
    config = ReproduceConfig("pqm", **options)
    found = baseline_of(config, members(config))
    assert (None if found is None else found.name) == baseline


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"losses": ("rank", "mse")},
            "bce is not among the trainings; give --baseline one of rank-zeta2, rank-zeta4, mse",
        ),
        ({"baseline": "rank"}, "rank has several margins; give --baseline one of rank-zeta2, rank-zeta4$"),
        ({"baseline": "rank-zeta3"}, "rank-zeta3 is not among the trainings"),
    ],
)
def test_no_such_baseline(options, message):
    config = ReproduceConfig("pqm", **options)
    with pytest.raises(PQMError, match=f"baseline: {message}"):
        baseline_of(config, members(config))


def test_losses_without_a_margin_need_none():
    assert members(ReproduceConfig("pqm", losses=("bce",), zetas=())) == [Member("bce", None)]


def test_processes_that_do_not_divide_an_optimizer_step():
    with pytest.raises(PQMError, match="micro_batches: 32 cannot be divided evenly among 6 processes"):
        train_config(ReproduceConfig("pqm"), Member("bce", None), processes=6)


def test_a_run_is_resumed_by_another_number_of_processes(tmp_path):
    config = ReproduceConfig("pqm", out=str(tmp_path))
    member = Member("bce", None)
    member.run(config).mkdir(parents=True)
    (member.run(config) / "config.yaml").write_text("accumulation: 4\n", encoding="utf-8")
    found = resumed(train_config(config, member, processes=2))
    assert (found.accumulation, found.resume) == (4, True)
    (member.run(config) / "config.yaml").write_text("[1]\n", encoding="utf-8")
    with pytest.raises(PQMError, match="damaged, so the run cannot be resumed"):
        resumed(train_config(config, member))


@pytest.mark.parametrize("arguments", [["prm"], ["prm", "--losses", "bce"], ["--protocol", "prm"]])
def test_an_unknown_protocol(arguments, capsys):
    assert main(["reproduce", *arguments]) == 1
    assert capsys.readouterr().err == "pqm-fast: error: protocol: 'prm' is not known; choose one of pqm\n"


def test_other_conditions_in_one_folder(finished, world, tmp_path, capsys):
    folder, _ = finished
    arguments = ["reproduce", "pqm", "--out", str(folder), *command_line(world | {"n": (1, 2)})]
    assert main(arguments) == 1
    assert "holds a reproduction under other conditions: n ([1, 2, 4] then, [1, 2] now)" in capsys.readouterr().err


def test_an_option_is_corrected_before_anything_is_trained(world, tmp_path):
    arguments = ["reproduce", "pqm", "--out", str(tmp_path / "out"), "--estimate-only"]
    assert main([*arguments, *command_line(world)]) == 0
    assert main([*arguments, *command_line(world | {"max_steps": 5})]) == 0
    found = json.loads((tmp_path / "out" / "estimate.json").read_text(encoding="utf-8"))
    assert {own["steps"] for own in found["losses"]} == {5}


def test_a_folder_that_holds_something_else(world, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    assert main(["reproduce", "pqm", "--out", str(tmp_path / "out"), *command_line(world)]) == 1
    assert "is not an empty folder; choose another --out" in capsys.readouterr().err


def test_a_missing_model(world, tmp_path, capsys):
    arguments = command_line(world | {"model": str(tmp_path / "nowhere")})
    assert main(["reproduce", "pqm", "--out", str(tmp_path / "out"), *arguments]) == 1
    assert f"{tmp_path / 'nowhere'}: no such folder" in capsys.readouterr().err


def test_data_that_a_loss_cannot_use(world, tmp_path, capsys):
    """It is found before the other losses are trained with."""
    row = {"input": "w3 Step 1: w4 ки", "label": "w3 Step 1: w4 +"}
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    options = world | {"data": (str(tmp_path / "one.jsonl"),), "losses": ("bce", "group-rank")}
    assert main(["reproduce", "pqm", "--out", str(tmp_path / "out"), *command_line(options)]) == 1
    assert "group-rank compares correct with wrong steps" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()
