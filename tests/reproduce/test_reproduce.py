"""The published protocol from stand-in files to its table: figures by their definitions, and what goes on after a
stop."""

import json
import os
import shutil
import signal
import statistics
from itertools import combinations

import pytest
from published_files import CANDIDATES, QUESTIONS, command_line
from rank_processes import exit_codes, start_ranks

from pqm_fast.cli import main
from pqm_fast.common.signals import Stopped
from pqm_fast.reproduce import run as reproduce_run
from pqm_fast.reproduce.document import document
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.train.step_report import StepReporter

NAMES = ["rank-zeta2", "rank-zeta4", "bce", "orm"]
POOLS = {"gsm-weak-6": "weak", "math-strong-6": "strong", "math-weak-6": "weak"}
NS = (1, 2, 4)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def answered(text):
    return int(text.rsplit("The answer is: ", 1)[1])


def by_question(folder, world, pool, name):
    """For each question, (scores of the steps, whether the answer is right) of each candidate, from the files that
    were given and the scores."""
    rows = json.loads((folder / f"{world['pools'][0]}" / f"{pool}.json").read_text(encoding="utf-8"))
    scored = iter(lines(folder / "scores" / name / f"{pool}.jsonl"))
    found = []
    for number, row in enumerate(rows):
        right = number % 3
        found.append([(next(scored)["scores"], answered(r["text"]) == right) for r in row["responses"]])
    assert next(scored, None) is None
    return found


def first_of_the_best(candidates, how):
    return max(candidates, key=lambda candidate: how(candidate[0]))[1]


def any_of_the_best(candidates, how):
    """Solutions with a first step in common have one score if that step is the lowest of both."""
    best = max(how(scores) for scores, _ in candidates)
    return statistics.mean(right for scores, right in candidates if how(scores) == best)


def test_what_a_reproduction_leaves(finished):
    folder, printed = finished
    page = (folder / "reproduce.md").read_text(encoding="utf-8")
    assert page in printed
    assert printed.endswith(f"reproduction: {folder / 'reproduce.md'}, with a picture beside it\n")
    assert (folder / "best_of_n.png").read_bytes()[:4] == b"\x89PNG"
    found = results(folder)
    assert list(found["pools"]) == list(POOLS)
    assert found["baseline"] == "bce"
    for pool, policy in POOLS.items():
        assert list(found["pools"][pool]) == [policy]
        entry = found["pools"][pool][policy]
        assert (entry["questions"], entry["candidates"]) == (QUESTIONS, QUESTIONS * CANDIDATES)
        assert list(entry["losses"]) == NAMES
        assert f"## {pool}, {policy}" in page
    for name in NAMES:
        assert Scorer.from_pretrained(folder / "runs" / name, device="cpu").encoder.template.step_token == "[PRM]"
    for published in ("| 0.398 |", "| 0.514 |", "arXiv 2410.11287", "arXiv 2509.26578"):
        assert published in page
    assert "learning_rate is 0.01" in page  # not as published
    assert "differ from the published run" in page
    assert "| bce | 30 | 10 | 0 |" in page
    assert found["trained_on"]["bce"] == {"trajectories": 30, "questions": 10, "cut": 0, "notes": []}
    assert found["unfit"]["gsm-weak-6"] == {"solutions": QUESTIONS * CANDIDATES, "cut": 0, "unscored": 0}
    stored = json.loads((folder / "estimate.json").read_text(encoding="utf-8"))
    assert document(found, stored) == page  # every figure is a stored one


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pool", POOLS)
def test_best_of_the_first_n_and_expected(finished, world, pool, name):
    folder, _ = finished
    own = results(folder)["pools"][pool][POOLS[pool]]["losses"][name]
    how = {"min": min, "last": lambda scores: scores[-1]}[own["aggregate"]]
    assert own["aggregate"] == ("last" if name == "orm" else "min")
    questions = by_question(folder, world, pool, name)
    for n in NS:
        first = statistics.mean(first_of_the_best(candidates[:n], how) for candidates in questions)
        assert own["best_of_n"]["first_n"][str(n)]["mean"] == pytest.approx(first)
        expected = statistics.mean(
            statistics.mean(any_of_the_best(subset, how) for subset in combinations(candidates, n))
            for candidates in questions
        )
        figure = own["best_of_n"]["expected"][str(n)]
        assert figure["mean"] == pytest.approx(expected)
        assert figure["low"] < expected < figure["high"]


@pytest.mark.parametrize("pool", POOLS)
def test_yardsticks(finished, world, pool):
    folder, _ = finished
    entry = results(folder)["pools"][pool][POOLS[pool]]
    rows = json.loads((folder / f"{world['pools'][0]}" / f"{pool}.json").read_text(encoding="utf-8"))
    answers = [[answered(response["text"]) for response in row["responses"]] for row in rows]

    def vote(own):
        return max(dict.fromkeys(own), key=own.count)  # of equally many, the first

    def shared_vote(own, gold):
        """Of equally many, each counts as much as the others."""
        most = max(map(own.count, own))
        return statistics.mean(answer == gold for answer in set(own) if own.count(answer) == most)

    right = [number % 3 for number in range(QUESTIONS)]
    pairs = list(zip(answers, right, strict=True))
    mean = statistics.mean(statistics.mean(answer == gold for answer in own) for own, gold in pairs)
    assert entry["mean_accuracy"]["mean"] == pytest.approx(mean)
    for n in NS:
        first = statistics.mean(vote(own[:n]) == gold for own, gold in pairs)
        assert entry["vote"]["first_n"][str(n)]["mean"] == pytest.approx(first)
        expected = statistics.mean(
            statistics.mean(shared_vote(subset, gold) for subset in combinations(own, n)) for own, gold in pairs
        )
        assert entry["vote"]["expected"][str(n)]["mean"] == pytest.approx(expected)
        any_right = statistics.mean(gold in own[:n] for own, gold in pairs)
        assert entry["any"]["first_n"][str(n)]["mean"] == pytest.approx(any_right)
        expected = statistics.mean(
            statistics.mean(gold in subset for subset in combinations(own, n)) for own, gold in pairs
        )
        assert entry["any"]["expected"][str(n)]["mean"] == pytest.approx(expected)


@pytest.mark.parametrize("pool", POOLS)
def test_differences_are_question_by_question(finished, world, pool):
    """And their intervals are those of Student's t over the questions."""
    folder, _ = finished
    entry = results(folder)["pools"][pool][POOLS[pool]]["losses"]
    assert entry["bce"]["against"] is None
    t = 3.182446305284263  # the quantile 0.975 for 3 degrees of freedom
    assert QUESTIONS == 4

    def by_kind(name, n):
        how = {"min": min, "last": lambda scores: scores[-1]}[entry[name]["aggregate"]]
        questions = by_question(folder, world, pool, name)
        return {
            "first_n": [float(first_of_the_best(own[:n], how)) for own in questions],
            "expected": [
                statistics.mean(float(any_of_the_best(subset, how)) for subset in combinations(own, n))
                for own in questions
            ],
        }

    for name in ("rank-zeta2", "orm"):
        for n in NS:
            own, baseline = by_kind(name, n), by_kind("bce", n)
            for kind in ("first_n", "expected"):
                gaps = [a - b for a, b in zip(own[kind], baseline[kind], strict=True)]
                mean, half = statistics.mean(gaps), t * statistics.stdev(gaps) / QUESTIONS**0.5
                found = entry[name]["against"][kind][str(n)]
                assert found["mean"] == pytest.approx(mean, abs=1e-11)
                assert found["low"] == pytest.approx(max(mean - half, -1), abs=1e-11)
                assert found["high"] == pytest.approx(min(mean + half, 1), abs=1e-11)


def test_again_nothing_is_done_again(finished, reproduce, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "out")
    for name in ("train", "score", "estimate"):
        monkeypatch.setattr(reproduce_run, name, None)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert reproduce() == 0
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed <= {"results.json"}  # it names its folder
    assert results(tmp_path / "out")["pools"] == results(finished[0])["pools"]


def test_a_loss_is_added(finished, reproduce, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "out")
    trained = []
    train = reproduce_run.train
    monkeypatch.setattr(reproduce_run, "train", lambda config, ranks: trained.append(config) or train(config, ranks))
    assert reproduce(losses=("rank", "bce", "orm", "mse")) == 0
    assert [(config.loss, config.warmup_fraction, config.accumulation) for config in trained] == [("mse", 0.1, 2)]
    entry = results(tmp_path / "out")["pools"]["math-weak-6"]["weak"]["losses"]
    assert list(entry) == [*NAMES, "mse"]
    assert {name: entry[name] for name in NAMES} == results(finished[0])["pools"]["math-weak-6"]["weak"]["losses"]


def test_a_signal_between_two_trainings(finished, reproduce, tmp_path, monkeypatch):
    train = reproduce_run.train

    def stopped(config, ranks):
        if config.loss == "orm":
            raise Stopped(signal.SIGTERM)
        return train(config, ranks)

    monkeypatch.setattr(reproduce_run, "train", stopped)
    options = {"losses": ("bce", "orm"), "zetas": ()}
    assert reproduce(**options) == 128 + signal.SIGTERM
    runs = tmp_path / "out" / "runs"
    assert [path.name for path in runs.iterdir()] == ["bce"]
    kept = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    assert kept
    monkeypatch.setattr(reproduce_run, "train", train)
    assert reproduce(**options) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for pool, policy in POOLS.items():
        whole, own = (results(folder)["pools"][pool][policy] for folder in (finished[0], tmp_path / "out"))
        assert own["losses"] == {name: whole["losses"][name] for name in ("bce", "orm")}
        assert own["vote"] == whole["vote"]


def test_a_signal_in_a_training(finished, reproduce, tmp_path, monkeypatch, capsys):
    report = StepReporter.report

    def signalled(self, launched):
        if launched.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        report(self, launched)

    monkeypatch.setattr(StepReporter, "report", signalled)
    options = {"losses": ("bce",), "zetas": ()}
    assert reproduce(**options) == 128 + signal.SIGTERM
    assert "resume" in capsys.readouterr().err
    monkeypatch.setattr(StepReporter, "report", report)
    assert reproduce(**options) == 0
    assert "resuming from" in capsys.readouterr().out
    for path in (tmp_path / "out" / "runs" / "bce").glob("*.safetensors"):
        assert path.read_bytes() == (finished[0] / "runs" / "bce" / path.name).read_bytes()


@pytest.mark.processes
def test_two_processes(finished, world, tmp_path, no_picture):
    """They take the optimizer steps of one, and score the same pools."""
    options = {"losses": ("bce",), "zetas": ()}
    config = ReproduceConfig("pqm", out=str(tmp_path / "out"), **(world | options))
    ranks = start_ranks(2, lambda ranks: bool(reproduce_run.reproduce(config, ranks)), tmp_path)
    assert exit_codes(ranks) == [0, 0], (tmp_path / "said-0").read_text()
    assert json.loads((tmp_path / "out" / "estimate.json").read_text())["processes"] == 2
    for pool, policy in POOLS.items():
        for ours, alone in zip(
            *(lines(folder / "scores" / "bce" / f"{pool}.jsonl") for folder in (tmp_path / "out", finished[0])),
            strict=True,
        ):
            # a saved weight, in bfloat16, may round to its other neighbour
            assert ours["scores"] == pytest.approx(alone["scores"], abs=2e-3)
        assert results(tmp_path / "out")["pools"][pool][policy]["losses"].keys() == {"bce"}


def test_options_come_from_a_file_too(world, tmp_path, capsys):
    file = tmp_path / "options.json"
    typed = {name: list(value) if isinstance(value, tuple) else value for name, value in world.items()}
    file.write_text(json.dumps(typed | {"out": str(tmp_path / "out"), "protocol": "pqm"}), encoding="utf-8")
    assert main(["reproduce", "--config", str(file), "--estimate-only"]) == 0
    assert main(["reproduce", "pqm", "--out", str(tmp_path / "out"), *command_line(world), "--estimate-only"]) == 0
    first, second = capsys.readouterr().out.split("Estimate for")[1:]
    assert first == second  # the stored estimate
    assert not (tmp_path / "out" / "runs").exists()
