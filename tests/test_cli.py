"""The commands as a user types them: help, --config, and train, score, evaluate one after the other."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import help_text
import numpy as np
import pytest
import tiny
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from part_file import rows_in, sealed
from pqm_kernels import LOSSES

from pqm_fast.arithmetic.demo import DemoConfig
from pqm_fast.cli import COMMANDS, main
from pqm_fast.common import digests as state
from pqm_fast.common.journal import Journal
from pqm_fast.common.options import escape, unescape
from pqm_fast.data import token_cache
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.evaluate import calibrated_metrics, cross_thresholds, step_metrics
from pqm_fast.evaluate.run import EvaluateConfig
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.publish.push_options import PushConfig
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.scoring import run as score_module
from pqm_fast.scoring.options import ScoreConfig
from pqm_fast.scoring.third_party import ThirdPartyPRM
from pqm_fast.serve.options import ServeConfig
from pqm_fast.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "demo": DemoConfig,
    "train": TrainConfig,
    "push": PushConfig,
    "score": ScoreConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
    "reproduce": ReproduceConfig,
}


# ---- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", CONFIGS)
def test_help_lists_every_option_with_its_docstring(command, capsys):
    assert main([command, "--help"]) == 0
    help_text.assert_lists_every_option(capsys.readouterr().out, f"pqm-fast {command}", CONFIGS[command])


@pytest.mark.parametrize("columns", ["50", "60", "80"])
def test_help_keeps_the_example_of_a_label_map_whole(columns, capsys, monkeypatch):
    """The help breaks lines at commas too."""
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["evaluate", "--help"]) == 0
    assert "-1=0,0=null,1=1" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_for_users(command, capsys):
    """No text that is meant for who reads the code, and defaults are shown as they are typed: on one line."""
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert not help_text.DEVELOPERS.search(text), help_text.DEVELOPERS.search(text)
    flat = re.sub(r"[│╭╮╰╯─]", " ", text)
    typed = re.findall(r"--([\w-]+) \[?TEXT", flat)
    assert len(typed) == len(set(typed))
    for name, *defaults in (  # the last one is that of a published protocol
        ("prompt-format", r"'{prompt}\n'", "'[INST] {prompt} [/INST]'"),
        ("step-format", r"'{step}\n'", r"'\n{step} '"),
        ("step-separator", r"'\n'"),
    ):
        own = re.search(rf"--{name} TEXT.*?\(default:\s*(.*?)\)\s", flat, re.DOTALL)
        assert own is None or own[1] in (*defaults, "None"), name


def test_usage_names_every_command(capsys):
    assert main(["--help"]) == main(["-h"]) == 0
    assert main([]) == 2
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.split("\n\n")[1].splitlines()] == list(COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == (ROOT / "kernels" / "VERSION").read_text()


def test_help_needs_no_heavy_package(tmp_path):
    """Importing the command line, its help and its usage errors load neither torch nor transformers."""
    lines = [[], ["train"], *([command, "--help"] for command in COMMANDS)]
    code = (
        "import sys; from pqm_fast.cli import main\n"
        f"for line in {lines}:\n"
        "    code = main(line)\n"
        "    assert code == (0 if '--help' in line else 2), (line, code)\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'triton'} & set(sys.modules)\n"
        "    assert not heavy, (line, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """Calls `pqm-fast train` with the given options of a file and of the command line; returns its TrainConfig."""
    seen: list[TrainConfig] = []
    monkeypatch.setattr("pqm_fast.train.loop.train", lambda config, ranks: seen.append(config))
    monkeypatch.setattr("pqm_fast.cli._print_commands", lambda checkpoint: None)  # there is none

    def parse(options: str | dict[str, Any] | None, *arguments: str) -> TrainConfig:
        file = tmp_path / "options.yaml"
        if options is not None:
            file.write_text(options if isinstance(options, str) else yaml.safe_dump(options), encoding="utf-8")
            arguments = ("--config", str(file), *arguments)
        assert main(["train", *arguments]) == 0
        return seen.pop()

    return parse


FILE = """
model: m            # a comment
data: [a.jsonl, b c.jsonl]
out: runs/{1}
learning_rate: 1e-5 # YAML 1.1 takes this for text
zeta: 2
max_length: null
max_steps: 40
cache_dir: null
progress: false
float8: yes
recompute_layers: all
micro_batch_tokens: 4096
eval_data: []
loss: bce
read: {skip_bad: true, format: trl}
template:
  prompt_format: "Q: {prompt}\\nA:"
  step-token: last
"""


def test_config_file(parsed):
    assert parsed(FILE) == TrainConfig(
        model="m",
        data=("a.jsonl", "b c.jsonl"),
        out="runs/{1}",
        learning_rate=1e-5,
        zeta=2.0,
        max_length=None,
        max_steps=40,
        cache_dir=None,
        progress=False,
        float8=True,
        recompute_layers="all",
        micro_batch_tokens=4096,
        eval_data=(),
        loss="bce",
        read=ReadOptions(skip_bad=True, format="trl"),
        template=Template(prompt_format="Q: {prompt}\nA:", step_token="last"),
    )


def test_the_command_line_wins_over_the_config_file(parsed):
    base = parsed(FILE)
    changes = {
        ("--data", "c.jsonl", "d.jsonl"): {"data": ("c.jsonl", "d.jsonl")},
        ("--eval-data", "e.jsonl"): {"eval_data": ("e.jsonl",)},
        ("--learning-rate", "3e-4"): {"learning_rate": 3e-4},
        ("--max-length", "77"): {"max_length": 77},
        ("--max-steps", "None"): {"max_steps": None},
        ("--cache-dir", "x"): {"cache_dir": "x"},
        ("--progress", "--no-float8"): {"progress": True, "float8": False},
        ("--recompute-layers", "7", "--micro-batch-tokens=auto"): {"recompute_layers": 7, "micro_batch_tokens": "auto"},
        ("--no-skip-bad",): {"read": ReadOptions(format="trl")},
        ("--field", "prompt=question", "--label-map", "-1=0,0=null,1=1", "--field=labels=x"): {
            "read": dataclasses.replace(base.read, field=["prompt=question", "labels=x"], label_map="-1=0,0=null,1=1")
        },
        ("--step-token=<s>",): {"template": dataclasses.replace(base.template, step_token="<s>")},
        ("--loss", "rank", "--zeta", "1e1"): {"loss": "rank", "zeta": 10.0},
    }
    for arguments, expected in changes.items():
        assert parsed(FILE, *arguments) == dataclasses.replace(base, **expected)


TYPED = {
    r"{step}\n": "{step}\n",
    r"\t{step}\r\n": "\t{step}\r\n",
    r"{step}\\n": r"{step}\n",
    r"\u4e00{step}\u043A": "\u4e00{step}\u043a",
    "{step}\n": "{step}\n",  # a shell may also give the character itself
    r"\\boxed{{step}}": r"\boxed{{step}}",
}


@pytest.mark.parametrize("typed", TYPED)
def test_texts_are_typed_with_escapes(parsed, typed):
    """On the command line; a file gives them as they are."""
    meant = TYPED[typed]
    assert parsed(FILE, f"--step-format={typed}").template.step_format == meant
    assert parsed(FILE, "--step-format", typed, "--step-marker", r"\n#\t").read.step_marker == "\n#\t"
    values = yaml.safe_load(FILE)
    values["template"]["step_format"] = typed
    assert parsed(values).template.step_format == typed
    assert unescape(escape(meant)) == meant


def test_paths_are_no_texts(parsed):
    assert parsed(FILE, "--out", r"C:\new", "--data", r"a\n.jsonl").out == r"C:\new"


@pytest.mark.parametrize(
    "typed", [r"{step}\q", "{step}\\", r"\u12{step}", r"\ud800{step}", r"\boxed{{step}}", r"\x41{step}"]
)
def test_a_malformed_escape_is_an_error(typed, capsys):
    assert main(["train", "--model", "m", "--data", "d", "--out", "o", f"--step-format={typed}"]) == 2
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert "is not an escape; write \\n (line break)" in said
    assert "--step-format" in said


@pytest.mark.parametrize(("command", "module"), [("sample", "sample_solutions"), ("annotate", "annotate")])
def test_every_text_of_the_policies_is_typed_with_escapes(command, module, monkeypatch):
    seen = []
    monkeypatch.setattr(f"pqm_fast.sample.{module}.{command}", lambda config, ranks: seen.append(config))
    given = ["--step-separator", r"\n\n", "--stop", r"\nQ:", r"\\", "--prompt-format", "chat", "--system", r"a\tb"]
    policy = ["--policy", "arithmetic:strong", "--data", "d", "--out", "o"]
    assert main([command, *policy, *given]) == 0
    writing = seen[0].writing
    assert (writing.step_separator, writing.stop, writing.system) == ("\n\n", ("\nQ:", "\\"), "a\tb")


def test_texts_of_third_party_prms_are_typed_with_escapes(monkeypatch):
    seen: list[ScoreConfig] = []
    monkeypatch.setattr(score_module, "score", lambda config, ranks: seen.append(config))
    files = ["--model", "m", "--data", "d", "--out", "o"]
    assert (
        main(["score", *files, "--preset", "trl", "--step-token", r"\n\n", "--prompt-format", r"\u4e00{prompt}"]) == 0
    )
    assert seen[0].scoring.third_party == ThirdPartyPRM("trl", step_token="\n\n", prompt_format="\u4e00{prompt}")


@pytest.mark.parametrize("typed", [["--zeta", "x"], ["--zeta=-1"], ["--config", "nowhere.yaml"], ["--help"]])
def test_one_of_several_processes_says_what_is_wrong(typed, monkeypatch, capsys):
    arguments = ["train", "--model", "m", "--data", "d", "--out", "o", *typed]
    first = main(arguments)
    assert any(capsys.readouterr())
    monkeypatch.setenv("RANK", "1")
    assert main(arguments) == first
    assert not any(capsys.readouterr())


def test_where_the_config_option_stands_does_not_matter(parsed, tmp_path):
    parsed(FILE)
    file = str(tmp_path / "options.yaml")
    first = parsed(None, "--config", file, "--data", "c.jsonl", "--zeta", "1")
    assert parsed(None, "--data", "c.jsonl", "--zeta", "1", f"--config={file}") == first
    assert (first.data, first.zeta, first.model) == (("c.jsonl",), 1.0, "m")


def test_config_file_in_json(parsed):
    values = yaml.safe_load(FILE)
    assert parsed(json.dumps(values)) == parsed(FILE)


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
TYPED_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\\\n\t\rnu"), max_size=12)
NUMBER = st.floats(1e-12, 1e12)


@settings(max_examples=25, deadline=None)
@given(
    config=st.builds(
        TrainConfig,
        model=TEXT,
        data=st.lists(TEXT.filter(lambda text: not text.startswith("-")), min_size=1).map(tuple),
        out=TEXT,
        loss=st.sampled_from(list(LOSSES)),
        zeta=NUMBER,
        label_threshold=st.none() | st.floats(0.001, 1),
        read=st.builds(
            ReadOptions,
            skip_bad=st.booleans(),
            step_marker=TYPED_TEXT.map(lambda text: f"{text}x"),
            field=st.sampled_from([[], ["prompt=q"], ["prompt=q", "labels=-r"]]),
            label_map=st.sampled_from([None, "-1=0,0=null,1=1", "a=1"]),
        ),
        template=st.builds(
            Template,
            prompt_format=st.just("chat") | TYPED_TEXT.map("{}{{prompt}}\n".format),
            step_format=TYPED_TEXT.map("\n{{step}}{}".format),
            step_token=TYPED_TEXT.map("<{}>".format),
        ),
        max_length=st.none() | st.integers(1, 10**6),
        cache_dir=st.none() | TEXT.filter(lambda text: text != "None"),
        learning_rate=NUMBER,
        weight_decay=st.floats(0, 1),
        resume=st.booleans(),
        progress=st.booleans(),
    )
)
def test_config_yaml_of_a_run_gives_the_same_config(tmp_path_factory, config):
    """What a run writes is what --config reads, whatever the values; whether it was resumed is no part of it."""
    from pqm_fast.train.stored_options import write_config

    folder = tmp_path_factory.getbasetemp() / "written"
    seen: list[TrainConfig] = []
    write_config(dataclasses.replace(config, out=str(folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pqm_fast.train.loop.train", lambda config, ranks: seen.append(config))
        patch.setattr("pqm_fast.cli._print_commands", lambda checkpoint: None)
        assert main(["train", "--config", str(folder / "config.yaml"), f"--out={config.out}"]) == 0
    assert seen == [dataclasses.replace(config, resume=False)]


# ---- train, score, evaluate -----------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        steps = [tiny.text(rng, int(rng.integers(1, 5))) for _ in range(rng.integers(1, 6))]
        labels = [bool(label) for label in rng.integers(0, 2, len(steps))]
        rows.append({"id": f"r{i}", "prompt": f"w3 w{4 + i % 7}", "completions": steps, "labels": labels, "source": i})
    return rows


def train(out, *data, **options):
    options = {"max_steps": 2, "micro_batch_tokens": 128, "max_length": 64, "eval_fraction": 0.3} | options
    named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return main(["train", *named, "--out", str(out), "--no-progress", "--device=cpu", "--data", *map(str, data)])


def score(out, data, model, *more):
    paths = ["--model", model, "--data", data, "--out", out]
    return main(["score", *map(str, paths), "--device", "cpu", "--no-progress", *more])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """The pictures of the trainings, which take longer than these trainings."""
    monkeypatch.setattr("pqm_fast.train.loop.draw_curve", lambda folder: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`model` (random), `data.jsonl`, `run` (trained on it) and `cache`."""
    folder = tmp_path_factory.mktemp("world")
    tiny.model_folder(folder / "model", num_hidden_layers=2)
    write(folder / "data.jsonl", make_records(40))
    assert train(folder / "run", folder / "data.jsonl", model=folder / "model", cache_dir=folder / "cache") == 0
    return folder


def test_config_yaml_of_a_run_repeats_it(world, tmp_path, capsys):
    run, again = world / "run", tmp_path / "again"
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    places = f"checkpoint: {again}\ncurve: {again / 'training.png'}\ncard: {again / 'README.md'}\n"
    assert f"{places}serve: pqm-fast serve --model {again}\nserve: vllm serve {again} " in capsys.readouterr().out
    assert (tmp_path / "again" / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_score_then_evaluate(world, tmp_path, capsys, monkeypatch):
    data, scored, read = world / "data.jsonl", tmp_path / "scored.jsonl", []
    state._known_digest.cache_clear()
    original = state._read_digest
    monkeypatch.setattr(state, "_read_digest", lambda file: read.append(file) or original(file))
    assert score(scored, data, world / "run") == 0
    assert read.count(world / "run" / "model.safetensors") == read.count(data) == 1  # hashed once
    given, found = rows_of(data), rows_of(scored)
    assert [{k: v for k, v in row.items() if k not in ("scores", "scored_by")} for row in found] == given
    assert {row["scored_by"] for row in found} == {str((world / "run").resolve())}
    assert all(len(row["scores"]) == len(row["completions"]) for row in found)
    assert not list(tmp_path.glob("*.part*"))
    capsys.readouterr()

    assert main(["evaluate", "--data", str(scored), "--out", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    q, y = [row["scores"] for row in found], [row["labels"] for row in given]
    expected = step_metrics(q, y) | calibrated_metrics(q, y, cross_thresholds(q, y, [row["prompt"] for row in given]))
    assert (result["records"], result["model"]) == (40, str((world / "run").resolve()))
    assert result["steps"] == expected
    out = capsys.readouterr().out
    assert out.startswith("Steps\n")
    fixed, calibrated = expected["step_accuracy"], expected["step_accuracy_calibrated"]
    assert re.search(rf"step accuracy +{fixed:.3f} +{calibrated:.3f}\n", out)

    arguments = ["--data", str(data), "--model", str(world / "run"), "--device", "cpu", "--no-progress"]
    assert main(["evaluate", *arguments, "--out", str(tmp_path / "at_once.json")]) == 0
    at_once = json.loads((tmp_path / "at_once.json").read_text())
    assert at_once == result | {"data": [str(data)]}


def test_pool_of_candidates(world, tmp_path, capsys):
    """Records without labels: scored as they are, and Best-of-N of them."""
    rng = np.random.default_rng(3)
    pool = [
        {
            "question": f"w3 w{4 + i}",
            "question_id": f"q{i}",
            "answer": "w7",
            "responses": [
                {"text": f"{tiny.text(rng, 3)}\nw5", "model_name": name, "correct": bool(rng.integers(0, 2))}
                for name in ("weak", "strong")
                for _ in range(4)
            ],
        }
        for i in range(5)
    ]
    scored = tmp_path / "scored.jsonl"
    assert score(scored, write(tmp_path / "pool.jsonl", pool), world / "run") == 0
    found = rows_of(scored)
    assert [row["id"] for row in found] == [f"q{i}/{k}" for i in range(5) for k in range(1, 9)]
    assert all("labels" not in row and len(row["scores"]) == 2 for row in found)
    assert {(row["policy"], row["question_id"]) for row in found} >= {("weak", "q0"), ("strong", "q4")}
    capsys.readouterr()

    how = ["--aggregate", "min", "last", "--n", "1", "4"]
    assert main(["evaluate", "--data", str(scored), *how, "--out", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["overall"]["candidates"] == 40
    assert set(result["policies"]) == {"weak", "strong"}
    assert result["overall"]["best_of_n"].keys() == {"min", "last"}
    mean = np.mean([response["correct"] for row in pool for response in row["responses"]])
    assert result["overall"]["best_of_n"]["min"]["1"]["mean"] == pytest.approx(mean)  # one draw is a random one
    out = capsys.readouterr().out
    assert out.startswith("Best-of-N")
    assert re.search(r"^ +strong +5 +20 ", out, re.MULTILINE)


@pytest.fixture
def whole(world, tmp_path, monkeypatch):
    """The scores of 40 records in chunks of 8, from a run that nothing interrupted."""
    monkeypatch.setattr(score_module, "CHUNK", 8)
    assert score(tmp_path / "whole.jsonl", world / "data.jsonl", world / "run") == 0
    return (tmp_path / "whole.jsonl").read_bytes()


def interrupted(world, out, monkeypatch, chunks: int) -> list[int]:
    """Runs `score` until it is interrupted in the chunk after `chunks`, each of which is one batch. Returns a list that
    grows by the size of each batch that is scored from then on."""
    sizes: list[int] = []
    original = StepQModel.scores

    def counted(self, batch, plan=None):
        if len(sizes) == chunks:
            sizes.clear()
            raise KeyboardInterrupt
        sizes.append(len(batch.members))
        return original(self, batch, plan)

    with monkeypatch.context() as patch:
        patch.setattr(StepQModel, "scores", counted)
        assert score(out, world / "data.jsonl", world / "run") == 130
    monkeypatch.setattr(
        StepQModel,
        "scores",
        lambda self, batch, plan=None: sizes.append(len(batch.members)) or original(self, batch, plan),
    )
    return sizes


@pytest.mark.parametrize("lost", [0, 1, 500, None])  # None: all
def test_interrupted_score_goes_on_where_it_stopped(world, whole, tmp_path, monkeypatch, capsys, lost):
    """Cut off anywhere, also within a line, it ends byte for byte as if nothing had happened."""
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    scored = interrupted(world, out, monkeypatch, chunks=3)
    assert not out.exists()
    assert [json.loads(line.rpartition(b"\t")[0]) for line in part.read_bytes().splitlines()[1:]] == [
        json.loads(line) for line in whole.splitlines()[:24]
    ]
    kept = f"what is done is kept in {part}, and the same command continues from there"
    assert capsys.readouterr().err == f"pqm-fast: interrupted; {kept}\n"
    os.truncate(part, part.stat().st_size - lost if lost is not None else 0)  # what had not reached the disk
    left = rows_in(part)
    assert score(out, world / "data.jsonl", world / "run") == 0
    assert out.read_bytes() == whole
    assert len({row["id"] for row in rows_of(out)}) == 40
    assert scored == [8] * (5 - left // 8)  # whole chunks are not scored again
    assert [path.name for path in tmp_path.glob("out.jsonl*")] == ["out.jsonl"]


@pytest.mark.parametrize("tree", ["--no-prefix-tree", "--prefix-tree"])
def test_scores_are_written_as_they_are_made(world, tmp_path, monkeypatch, capfd, tree):
    """By batch, not by the chunk of 2,000 records that is tokenised at once."""
    batches, written = [], []
    scores, append = StepQModel.scores, Journal.append
    monkeypatch.setattr(
        StepQModel, "scores", lambda self, batch, plan: batches.append(batch) or scores(self, batch, plan)
    )

    def appended(self, row):
        written.append(sum(len(batch.members) for batch in batches))
        return append(self, row)

    monkeypatch.setattr(Journal, "append", appended)
    data = write(tmp_path / "data.jsonl", sorted(make_records(40), key=lambda row: row["prompt"]))
    assert score(tmp_path / "out.jsonl", data, world / "run", tree, "--max-tokens=64", "--progress") == 0
    assert len(written) == 40
    # never more in hand than the batch that was scored last, and of a tree of 6 that was cut what waits for the rest
    in_hand = max(len(batch.members) for batch in batches) + (6 if tree == "--prefix-tree" else 0)
    assert all(scored - lines <= in_hand for lines, scored in enumerate(written))
    assert in_hand < 20
    members = [i for batch in batches for i in batch.members]
    assert (sorted(members) if tree == "--prefix-tree" else members) == list(range(40))
    assert "40/40" in capfd.readouterr().err


@pytest.mark.parametrize(("begun", "now"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_interrupted_score_goes_on_in_its_dtype(world, whole, tmp_path, monkeypatch, capsys, begun, now):
    """Whatever auto would be by then."""
    out, data, run = tmp_path / "out.jsonl", world / "data.jsonl", world / "run"
    assert score(tmp_path / "in_half.jsonl", data, run, "--dtype=bfloat16") == 0
    expected = {"bfloat16": (tmp_path / "in_half.jsonl").read_bytes(), "float32": whole}
    assert expected["bfloat16"] != whole
    picked = {"pqm_fast.model.device.MIN_BFLOAT16_WIDTH": 0, "pqm_fast.model.device.bfloat16_gain": lambda *_: 2.0}
    with monkeypatch.context() as patch:
        for name, value in picked.items() if begun == "bfloat16" else ():
            patch.setattr(name, value)
        interrupted(world, out, patch, chunks=3)
    for name, value in picked.items() if now == "bfloat16" else ():
        monkeypatch.setattr(name, value)
    capsys.readouterr()
    assert score(out, data, run, f"--dtype={now}") == 1
    assert f"dtype ('{begun}' then, '{now}' now)" in capsys.readouterr().err
    assert score(out, data, run) == 0
    assert out.read_bytes() == expected[begun]


@pytest.mark.parametrize("first", [False, True])
def test_damaged_scores_are_computed_again(world, whole, tmp_path, monkeypatch, capsys, first):
    """In the middle: the output is in the order of the records all the same."""
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    scored = interrupted(world, out, monkeypatch, chunks=3)
    lines = part.read_bytes().splitlines(keepends=True)
    unscored = json.loads(whole.splitlines()[30])["id"]
    lines.append(sealed(part, json.dumps({"id": unscored}).encode()))
    lines[10] = lines[10].replace(b"w", b"v", 1)
    if first:  # what it was begun with, and nothing else says so
        lines[0] = lines[0].replace(b"model", b"m\xffdel", 1)
    part.write_bytes(b"".join(lines))
    assert score(out, world / "data.jsonl", world / "run") == 0
    numbers = "3 damaged (line 1, 11, 26)" if first else "2 damaged (line 11, 26)"
    assert f"{part}: {numbers}: rows are done again, the others kept" in capsys.readouterr().out
    assert out.read_bytes() == whole
    assert scored == [8, 8, 8]  # its chunk, and the two that were missing


@pytest.mark.fault(
    "the disk is full, in `score`",
    how="limits on the size of files (RLIMIT_FSIZE): within OUT.part, and as OUT is written from it",
    lost="nothing",
    recovers="exit code 1 and one message with the file and what is kept; with room, the same command goes on",
)
@pytest.mark.fault(
    "`score` is asked to end (Slurm, Kubernetes)",
    how="SIGTERM to its process in the middle",
    lost="the records of the batch under way",
    recovers="exit code 143 and what is kept; the same command goes on from there",
)
def test_score_goes_on_once_there_is_room(world, whole, tmp_path, monkeypatch, capsys, file_size_limit):
    """To its last record, and then to the end of the output; in between it is terminated."""
    out, data, run = tmp_path / "out.jsonl", world / "data.jsonl", world / "run"
    kept = f"; what is done is kept in {out}.part"
    with file_size_limit(2000):
        assert score(out, data, run) == 1
    assert capsys.readouterr().err == f"pqm-fast: error: {out}.part: File too large{kept}\n"
    original = StepQModel.scores

    def terminated(self, batch, plan=None):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, plan)

    with monkeypatch.context() as patch:
        patch.setattr(StepQModel, "scores", terminated)
        assert score(out, data, run) == 143
    assert capsys.readouterr().err == f"pqm-fast: terminated{kept}, and the same command continues from there\n"
    with monkeypatch.context() as patch, file_size_limit(len(whole) - 1):
        # OUT.part, with its checksums, is larger than OUT: a disk that is full only for the second
        patch.setattr(Journal, "append", file_size_limit(None)(Journal.append))
        assert score(out, data, run) == 1
    assert capsys.readouterr().err == f"pqm-fast: error: {out}: File too large{kept}\n"
    assert not out.exists()
    scored = []
    monkeypatch.setattr(StepQModel, "scores", lambda self, batch, plan=None: scored.append(batch))
    assert score(out, data, run) == 0
    assert out.read_bytes() == whole
    assert scored == []
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.jsonl"]


@pytest.mark.fault(
    "the disk is full, in `evaluate` and `report`",
    how="a limit on the size of files (RLIMIT_FSIZE); /dev/full as standard output",
    lost="the file that was being written; one of that name from before stays",
    recovers="exit code 1 and one message with the file; the command is run again",
)
def test_no_room_for_results(world, whole, tmp_path, capsys, file_size_limit):
    scored, out, page = tmp_path / "scored.jsonl", tmp_path / "out.json", tmp_path / "page.html"
    scored.write_bytes(whole)
    commands = {
        out: ["evaluate", "--data", str(scored), "--out", str(out)],
        page: ["report", str(scored), "--out", str(page)],
    }
    for file, arguments in commands.items():
        file.write_text("from before")
        with file_size_limit(100):
            assert main(arguments) == 1
        assert capsys.readouterr().err == f"pqm-fast: error: {file}: File too large\n"
        assert file.read_text() == "from before"
    assert sorted(path.name for path in tmp_path.glob("*") if path.name != "whole.jsonl") == [
        "out.json",
        "page.html",
        "scored.jsonl",
    ]
    with open("/dev/full", "w") as full:
        code = "import sys; from pqm_fast.cli import main; sys.exit(main(sys.argv[1:]))"
        ran = subprocess.run([sys.executable, "-c", code, "--help"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (ran.returncode, ran.stderr) == (1, b"pqm-fast: error: standard output: No space left on device\n")


def test_other_sources_train_alike(world, tmp_path):
    """A Parquet file and a folder saved by `datasets` hold the same records as the JSON lines."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    rows = make_records(40)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    halves = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows), "other": datasets.Dataset.from_list(rows[:3])}
    )
    halves.save_to_disk(tmp_path / "splits")
    for number, data in enumerate(("data.parquet", "saved", "splits:train")):
        out = tmp_path / f"out{number}"
        assert train(out, tmp_path / data, model=world / "model", cache_dir=tmp_path / "cache") == 0
        assert (out / "metrics.json").read_bytes() == (world / "run" / "metrics.json").read_bytes()
    halves["other"].to_json(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", rows[3:])
    assert (
        train(
            tmp_path / "two",
            tmp_path / "a.jsonl",
            tmp_path / "b.jsonl",
            model=world / "model",
            cache_dir=tmp_path / "cache",
        )
        == 0
    )
    assert (tmp_path / "two" / "metrics.json").read_bytes() == (world / "run" / "metrics.json").read_bytes()


def test_tokens_are_cached_until_something_they_depend_on_changes(world, tmp_path, monkeypatch):
    made: list[tuple[str, ...]] = []
    original = token_cache.tokenise
    monkeypatch.setattr(
        token_cache, "tokenise", lambda folder, paths, *rest: made.append(paths) or original(folder, paths, *rest)
    )
    data = write(tmp_path / "data.jsonl", make_records(40))
    runs = iter(range(100))

    def again(*files, **options):
        """How many data sets are tokenised anew."""
        made.clear()
        options = {"model": world / "model", "cache_dir": tmp_path / "cache"} | options
        out = tmp_path / f"out{next(runs)}"
        assert train(out, *(files or (data,)), **options) == 0
        return len(made), (out / "metrics.json").read_bytes()

    tokenised, metrics = again()
    assert tokenised == 1
    assert again() == (0, metrics)
    assert again(loss="bce", seed=1)[0] == 0
    assert again(step_token="last")[0] == 1
    assert again(step_format="{step} ")[0] == 1
    assert again(max_length=32)[0] == 1
    assert again(after_error="wrong")[0] == 1
    assert again(cache_dir=tmp_path / "elsewhere")[0] == 1
    other = tiny.model_folder(tmp_path / "other", tokens=80, num_hidden_layers=2)
    assert again(model=other)[0] == 1
    held_out = write(tmp_path / "held_out.jsonl", [row | {"prompt": "w60"} for row in make_records(10, seed=1)])
    assert again(eval_data=held_out)[0] == 1
    with open(data, "a") as file:
        file.write(json.dumps(make_records(41)[-1]) + "\n")
    assert again()[0] == 1
    rows = make_records(41)
    rows[0]["completions"].reverse()
    before = data.stat()
    write(data, rows)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert data.stat().st_size == before.st_size
    assert again()[0] == 1
    assert again()[0] == 0


def test_progress_bars_are_for_those_who_want_them(world, tmp_path, capfd):
    """With --no-progress nothing but errors goes to stderr, not even from the libraries below."""
    assert score(tmp_path / "quiet.jsonl", world / "data.jsonl", world / "run") == 0
    assert train(tmp_path / "quiet", world / "data.jsonl", model=world / "run", cache_dir=tmp_path / "cache") == 0
    assert capfd.readouterr().err == ""
    assert score(tmp_path / "loud.jsonl", world / "data.jsonl", world / "run", "--progress") == 0
    assert "40/40" in capfd.readouterr().err
