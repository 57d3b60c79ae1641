"""Whole studies, tiny ones: the files they write, what a second call repeats, and what stops a study."""

import json
import re
import shutil
from concurrent.futures import Future
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
import yaml

from pqm_fast.cli import main
from pqm_fast.data import read_records
from pqm_fast.study import schedule
from pqm_fast.study.analyse import STEP_FIGURES
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.trial import _dtype

TINY = (
    "--labels given --steps 4 --warmup-steps 1 --problems 12 --tuning-problems 4 --test-problems 6 --n 2 --workers 1 "
    "--no-progress --aggregate min last"
)
BASE = "--losses rank bce --learning-rates 1e-3 2e-3 --seeds 0 1 --zetas"
ONE = "--losses bce --learning-rates 1e-3 --seeds 0 --zetas"


class InThisProcess:
    """Replaces the workers where they are not tested, because starting one takes seconds."""

    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, work, *arguments):
        future = Future()
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future

    def shutdown(self, **options):
        pass


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than these trainings. The first study has its own."""
    monkeypatch.setattr("pqm_fast.train.loop.draw_curve", lambda folder: None)
    monkeypatch.setattr("pqm_fast.study.pictures.draw", lambda results, folder: None)
    monkeypatch.setattr("pqm_fast.evaluate.pictures.draw", lambda result, out: [])


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(schedule, "ProcessPoolExecutor", InThisProcess)


@pytest.fixture
def no_training(monkeypatch):
    def submit(*arguments):
        raise AssertionError("nothing was left to be trained")

    monkeypatch.setattr(InThisProcess, "submit", submit)
    monkeypatch.setattr(schedule, "ProcessPoolExecutor", InThisProcess)


def study(folder, options):
    return main(["study", "--out", str(folder), *TINY.split(), *options.split()])


def results(folder):
    return json.loads((folder / "results.json").read_text())


def trials(folder):
    return {path.stem: json.loads(path.read_text()) for path in (folder / "trials").iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study, and its output."""
    folder = tmp_path_factory.mktemp("study") / "a study"
    with redirect_stdout(StringIO()) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pqm_fast.train.loop.draw_curve", lambda folder: None)
        patch.setattr(schedule, "ProcessPoolExecutor", InThisProcess)
        assert study(folder, BASE) == 0
    return folder, out.getvalue()


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that study, to be continued."""
    return shutil.copytree(finished[0], tmp_path / "study")


def test_what_a_study_leaves(finished):
    folder, printed = finished
    page = (folder / "study.md").read_text()
    assert page in printed
    assert printed.endswith(f"study: {folder / 'study.md'}, with pictures beside it\n")
    assert (folder / "losses.png").read_bytes()[:4] == b"\x89PNG"
    found = results(folder)
    assert found["versions"]["torch"]
    assert found["trials"] == len(trials(folder)) == 2 * (2 + 1)
    assert [cell["loss"] for cell in found["cells"]] == ["rank", "bce"]
    for cell in found["cells"]:
        assert cell["tuning"].keys() == {"0.001", "0.002"}
        best = max(cell["tuning"].values())
        assert cell["tuning"][f"{cell['learning_rate']:g}"] == best
        name = f"{cell['loss']}{'' if cell['zeta'] is None else '-zeta4'}_llama_given_lr{cell['learning_rate']:g}"
        own = [trials(folder)[f"{name}_seed{seed}"] for seed in (0, 1)]
        picked = [result["test"][cell["aggregate"]] for result in own]
        assert cell["best_of_n"]["mean"] == pytest.approx(np.mean(picked))
        assert len(picked[0]) == 7
        assert all(len(questions) == 6 for questions in picked[0])
    assert not list(folder.rglob("*.safetensors"))
    assert len(list((folder / "logs").iterdir())) == len(list((folder / "runs").iterdir())) == 6
    assert "4 steps" in (folder / "logs" / f"{name}_seed1.txt").read_text()


def test_pools_of_the_world_are_apart(finished):
    folder, _ = finished
    prompts = {
        name: {record.prompt for record in read_records(folder / "data" / f"{name}.jsonl")}
        for name in ("train-given", "tuning", "test")
    }
    assert [len(own) for own in prompts.values()] == [12, 4, 6]
    assert len(set.union(*prompts.values())) == 22


def test_again_nothing_is_done_again(copied, no_training):
    before = results(copied)
    assert study(copied, BASE) == 0
    assert results(copied) == before | {"config": before["config"] | {"out": str(copied)}}


def same(found, expected):
    """Whether two trials came to the same; a worker has more threads than this process, so the Q-values are rounded
    otherwise."""
    gap = found["steps"]["mean_gap"] == pytest.approx(expected["steps"]["mean_gap"], rel=1e-4)
    steps = [{name: value for name, value in own["steps"].items() if name != "mean_gap"} for own in (found, expected)]
    others = ("diverged", "tuning", "test", "curve")
    return gap and steps[0] == steps[1] and all(found[name] == expected[name] for name in others)


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()}


def test_only_what_is_new_is_trained(copied, in_process):
    before, cells = stamps(copied), results(copied)["cells"]
    assert study(copied, "--losses bce mse --learning-rates 1e-3 2e-3 --seeds 0 1 --zetas --baseline mse") == 0
    after = stamps(copied)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 3
    assert all(name.startswith("mse_llama_given_lr0.00") for name in after.keys() - before.keys())
    found = results(copied)
    assert [cell["loss"] for cell in found["cells"]] == ["bce", "mse"]
    assert found["trials"] == 6
    assert found["cells"][0]["best_of_n"] == cells[1]["best_of_n"]
    assert found["cells"][0]["against"] is not None  # the baseline may change
    assert study(copied, "--losses bce --learning-rates 1e-3 2e-3 --seeds 0 1 2 --zetas") == 0
    [name] = stamps(copied).keys() - after.keys()
    assert re.fullmatch(r"bce_llama_given_lr0\.00[12]_seed2\.json", name)


def test_other_conditions_are_refused(copied, no_training, capsys):
    assert study(copied, f"{BASE} --steps 5 --n 3") == 1
    said = capsys.readouterr().err
    assert f"{copied}: holds a study under other conditions: " in said
    assert "n (2 then, 3 now)" in said
    assert "steps (4 then, 5 now)" in said
    assert said.endswith("choose another --out\n")


def test_a_study_from_before_an_option_goes_on(copied, no_training):
    """An option that its study.json lacks had the default value."""
    file = copied / "study.json"
    stored = json.loads(file.read_text())
    for name in ("temperature", "noise"):
        del stored[name]
    assert not {"compare_weights", "compare_learning_rates"} & stored.keys()  # these may change
    file.write_text(json.dumps(stored))
    assert study(copied, f"{BASE} --compare-weights 2") == 0


def test_a_combination(tmp_path, in_process):
    """Its options reach the training, and the other seed is trained with the chosen weight."""
    options = "--losses bce+sibling --baseline bce+sibling --zetas --learning-rates 1e-3 2e-3 --seeds 0 1"
    assert study(tmp_path / "s", f"{options} --compare-learning-rates 1e-3 --compare-weights 1 3 --prefix-tree") == 0
    [cell] = results(tmp_path / "s")["cells"]
    assert cell["tuning"].keys() == {"0.001"}
    assert cell["tuning"]["0.001"][f"{cell['compare_weight']:g}"] == max(cell["tuning"]["0.001"].values())
    weights = {f"bce+sibling_llama_given_lr0.001_weight{weight}_seed0": weight for weight in (1, 3)}
    chosen = f"bce+sibling_llama_given_lr0.001_weight{cell['compare_weight']:g}_seed1"
    assert weights.keys() | {chosen} == {name for name in trials(tmp_path / "s") if "sibling" in name}
    for name, weight in weights.items():
        options = yaml.safe_load((tmp_path / "s" / "runs" / name / "config.yaml").read_text())
        assert (options["loss"], options["compare"], options["compare_weight"]) == ("bce", "sibling", weight)
        assert trials(tmp_path / "s")[name]["trial"]["compare_weight"] == weight
    assert "| bce+sibling, llama, labels given |" in (tmp_path / "s" / "study.md").read_text()


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert study(tmp_path, BASE) == 1
    assert "is not an empty folder; choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert study(tmp_path / "notes.txt", BASE) == 1


def test_a_trial_without_its_result_is_done_again(copied, in_process):
    """Its weights are gone, so it is trained again, with the same result because everything is seeded."""
    name = "bce_llama_given_lr0.001_seed0"
    before = trials(copied)[name]
    path = copied / "trials" / f"{name}.json"
    path.write_text('{"diverged": nu')  # damaged: said, and not done again by itself
    assert study(copied, BASE) == 1
    path.unlink()
    assert study(copied, BASE) == 0
    assert same(trials(copied)[name], before)


def test_figures_are_those_of_evaluate_and_a_trained_one_is_only_scored(tmp_path, in_process, monkeypatch):
    """A trial's checkpoint is scored and evaluated by `pqm-fast evaluate`."""
    assert study(tmp_path / "s", f"{ONE} --keep-weights") == 0
    name = "bce_llama_given_lr0.001_seed0"
    before = trials(tmp_path / "s")[name]
    assert (tmp_path / "s" / "runs" / name / "model.safetensors").exists()
    compare_with_evaluate(tmp_path)
    (tmp_path / "s" / "trials" / f"{name}.json").unlink()
    monkeypatch.setattr("pqm_fast.train.loop.train", None)
    assert study(tmp_path / "s", ONE) == 0
    assert trials(tmp_path / "s")[name] == before
    assert not list((tmp_path / "s").rglob("*.safetensors"))


@pytest.mark.parametrize("save_every", [0, 1])
def test_an_interrupted_trial_goes_on(finished, tmp_path, in_process, monkeypatch, save_every):
    """From its checkpoint if there is one; otherwise anew, also in a folder that was moved and on a device of another
    name."""
    from pqm_fast.train.step_report import StepReporter

    def stop(reporter, launched, report=StepReporter.report):
        if launched.step == 3:
            raise KeyboardInterrupt
        report(reporter, launched)

    name = "bce_llama_given_lr0.001_seed0"
    options = f"{ONE} --save-every {save_every}"
    with monkeypatch.context() as patched:
        patched.setattr(StepReporter, "report", stop)
        assert study(tmp_path / "before", options) == 130
    assert not (tmp_path / "before" / "trials").exists()
    folder = tmp_path / "before"
    if not save_every:
        folder = (tmp_path / "before").rename(tmp_path / "moved")
        options += " --device cpu"
    assert study(folder, options) == 0
    said = (folder / "logs" / f"{name}.txt").read_text()
    assert ("resuming from" in said) == bool(save_every)
    assert same(trials(folder)[name], trials(finished[0])[name])
    assert not list((folder / "runs").rglob("step-*"))


def test_a_rate_that_diverges_is_kept_and_not_chosen(copied, in_process):
    options = "--losses bce --seeds 0 1 --zetas --learning-rates"
    assert study(copied, f"{options} 1e38 1e6 1e-3") == 0
    name = "bce_llama_given_lr1e+38_seed0"
    assert re.search("step [1-4]: loss .*nan", trials(copied)[name]["diverged"])
    [cell] = results(copied)["cells"]
    assert cell["learning_rate"] == 0.001
    assert cell["tuning"]["1e+38"] is None
    # of 1e6 every loss may be finite, but the trained model has hidden states of about 1e30
    assert set(cell["tuning"]) == {"1e+38", "1e+06", "0.001"}
    assert study(copied, f"{options} 1e38") == 0
    [cell] = results(copied)["cells"]
    assert "best_of_n" not in cell
    assert "Diverged: bce, llama, labels given, with every learning rate." in (copied / "study.md").read_text()


def test_q_values_that_are_not_finite_are_kept_as_diverged(copied, in_process, monkeypatch):
    """Training finishes, but the model of one rate returns NaN."""
    from pqm_fast.study import trial

    def broken(config, folder, scorer=trial._scorer):
        found = scorer(config, folder)
        if "lr0.01_" in folder.name:
            torch.nn.init.constant_(found.model.head.weight, float("nan"))
        return found

    monkeypatch.setattr(trial, "_scorer", broken)
    assert study(copied, "--losses bce --seeds 0 1 --zetas --learning-rates 1e-2 1e-3") == 0
    assert "Q-values are not finite" in trials(copied)["bce_llama_given_lr0.01_seed0"]["diverged"]
    assert results(copied)["cells"][0]["tuning"]["0.01"] is None


def own_data(folder):
    """The files of a finished study, as a user would give them."""
    data = folder / "data"
    return (
        f"--data {data}/world/train.jsonl --tuning {data}/world/tuning.jsonl --test {data}/world/test.jsonl "
        f"--models {data}/models/llama"
    )


@pytest.fixture
def world(finished, tmp_path):
    """A copy whose path has no blank, because the options are split at blanks."""
    return shutil.copytree(finished[0], tmp_path / "world")


def test_a_users_own_data(world, tmp_path, in_process, capsys):
    """The world's files passed as user data: the same figures as from the world itself. Files that changed are another
    study."""
    options = f"{ONE} {own_data(world)}"
    assert study(tmp_path / "own", options) == 0
    [own] = trials(tmp_path / "own").values()
    assert same(own, trials(world)["bce_llama_given_lr0.001_seed0"])
    assert f"on {world}/data/world/train.jsonl" in (tmp_path / "own" / "study.md").read_text()
    train = world / "data" / "world" / "train.jsonl"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:-1]))
    assert study(tmp_path / "own", options) == 1
    assert "holds a study under other conditions: files" in capsys.readouterr().err


def test_questions_in_both_pools_are_refused(world, tmp_path, no_training, capsys):
    pool = world / "data" / "world"
    shared = (pool / "test.jsonl").read_text().splitlines(keepends=True)[3]
    with open(pool / "tuning.jsonl", "a", encoding="utf-8") as file:
        file.write(shared)
    assert study(tmp_path / "own", f"{ONE} {own_data(world)}") == 1
    said = capsys.readouterr().err
    assert "tuning, test: 1 questions are in both" in said
    assert json.loads(shared)["question"][:20] in said


def test_test_questions_that_are_trained_on_are_refused(world, tmp_path, no_training, capsys):
    folder = world / "data" / "world"
    question = json.loads((folder / "test.jsonl").read_text().splitlines()[2])["question"]
    with open(folder / "train.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": question, "completions": ["a: 1 +1 =2"], "labels": [1]}) + "\n")
    assert study(tmp_path / "own", f"{ONE} {own_data(world)}") == 1
    assert f"test, data: 1 questions are in both, such as {question!r}" in capsys.readouterr().err


def test_a_mistake_may_be_mended_in_the_same_folder(world, tmp_path, in_process, capsys):
    """As long as nothing was trained: a missing file, too many candidates, too long, and then the right options."""
    options = f"{ONE} {own_data(world)}"
    assert study(tmp_path / "own", options.replace("train.jsonl", "typo.jsonl")) == 1
    assert "typo.jsonl: no file or folder of this name" in capsys.readouterr().err
    assert study(tmp_path / "own", f"{options} --n 3") == 1
    assert "no policy has 3 candidates of any question" in capsys.readouterr().err
    assert study(tmp_path / "own", f"{options} --max-length 1000") == 1
    assert "max_length: 1000 is more than the model's context" in capsys.readouterr().err
    assert study(tmp_path / "own", options) == 0


def test_a_real_worker_trains_and_one_that_fails_stops_the_study(world, tmp_path, capsys, monkeypatch):
    """A label of 0.25 is none for the second loss, whose message must reach the caller."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    train = world / "data" / "world" / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    rows[3]["labels"][0] = 0.25
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = "--losses bce rank --learning-rates 1e-3 --seeds 0 --zetas"
    assert study(tmp_path / "own", f"{options} {own_data(world)}") == 1
    said = capsys.readouterr().err
    assert said.startswith("pqm-fast: error: ")
    assert "label 0.25" in said
    [(name, found)] = trials(tmp_path / "own").items()
    assert name.startswith("bce_")
    assert found["diverged"] is None
    assert not (tmp_path / "own" / "results.json").exists()


def compare_with_evaluate(tmp_path):
    [(name, found)] = trials(tmp_path / "s").items()
    pool, out = tmp_path / "s" / "data" / "world" / "test.jsonl", tmp_path / "evaluation.json"
    run = tmp_path / "s" / "runs" / name
    arguments = ["--model", str(run), "--data", str(pool), "--n", "1", "2", "--out", str(out), "--no-progress"]
    arguments += ["--aggregate", "min", "last"]
    assert main(["evaluate", *arguments]) == 0
    expected = json.loads(out.read_text())
    policies = expected["policies"]
    for how in ("min", "last"):
        for p, policy in enumerate(sorted(policies)):
            figure = policies[policy]["best_of_n"][how]["2"]["mean"]
            assert np.mean(found["test"][how][p]) == pytest.approx(figure, abs=1e-6)
        for n in ("1", "2"):
            figure = np.mean([own["best_of_n"][how][n]["mean"] for own in policies.values()])
            assert found["curve"][how][n] == pytest.approx(figure)
    for name in STEP_FIGURES:
        assert found["steps"][name] == pytest.approx(expected["steps"][name])
    yardsticks = results(tmp_path / "s")["pool"]["policies"]
    for policy, own in policies.items():
        assert yardsticks[policy]["mean_accuracy"] == pytest.approx(own["mean_accuracy"]["mean"])
        assert yardsticks[policy]["majority_vote"] == pytest.approx(own["majority_vote"]["mean"])
        assert yardsticks[policy]["pass_at_n"] == pytest.approx(own["pass_at_n"]["2"]["mean"])


def test_other_backbones_and_labels(tmp_path, in_process):
    options = f"{ONE} --problems 10 --rollouts 1 --models qwen2 mistral --labels monte-carlo first-error flip:0.5"
    assert study(tmp_path / "s", options) == 0
    found = {(cell["model"], cell["labels"]): cell for cell in results(tmp_path / "s")["cells"]}
    places = [("qwen2", "monte-carlo"), ("qwen2", "first-error"), ("qwen2", "flip:0.5"), ("mistral", "monte-carlo")]
    assert list(found) == places
    assert all(cell["diverged"] == 0 for cell in found.values())
    data = tmp_path / "s" / "data"
    labels = {
        kind: [record.labels for record in read_records(data / f"train-{kind}.jsonl")]
        for kind in ("monte-carlo", "first-error", "flip0.5")
    }
    assert {len(own) for own in labels.values()} == {120}
    assert any(None in own for own in labels["first-error"])
    assert labels["flip0.5"] != labels["monte-carlo"]
    for kind in labels:  # a loss knows of a solution what its labels tell
        rows = [json.loads(line) for line in (data / f"train-{kind}.jsonl").read_text().splitlines()]
        assert {name for row in rows for name in row} == {"id", "prompt", "completions", "labels"}
    for name in ("qwen2", "mistral"):
        configs = [json.loads(path.read_text()) for path in (tmp_path / "s" / "runs").glob(f"*_{name}_*/config.json")]
        assert {config["model_type"] for config in configs} == {name}


def test_all_trials_have_one_dtype(monkeypatch):
    """Also where the measurement of the faster dtype on a CPU would differ between processes."""
    monkeypatch.setattr("pqm_fast.model.device.bfloat16_gain", lambda *sizes: 10.0)
    assert _dtype(StudyConfig(device="cpu")) == "float32"
    assert _dtype(StudyConfig(device="cpu", dtype="bfloat16")) == "bfloat16"
