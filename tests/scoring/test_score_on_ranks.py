"""`score` and `evaluate --model` on several ranks: the records and the scores of one rank, nothing done twice."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import tiny
from rank_processes import exit_codes, in_ranks, start_ranks

from pqm_fast.common.journal import Journal, part_numbers
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.evaluate.run import EvaluateConfig, evaluate
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.ranks import watch
from pqm_fast.scoring import run as score_module
from pqm_fast.scoring.options import ScoreConfig, ScoringOptions
from pqm_fast.scoring.run import score

COUNT = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model in `run` and 60 records in `data.jsonl`."""
    folder = tmp_path_factory.mktemp("world")
    model = StepQModel.from_pretrained(str(tiny.model_folder(folder / "model", num_hidden_layers=2)))
    model.save(folder / "run", tiny.tokenizer(90), Recipe(Template(step_token="<eos>")))
    tiny.write_data(folder / "data.jsonl", count=COUNT, questions=12)
    return folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Eight records are tokenised at a time; by one thread, because processes are forked."""
    monkeypatch.setattr(score_module, "CHUNK", 8)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def config_of(world: Path, out: Path, data: Path | None = None, **options) -> ScoreConfig:
    scoring = ScoringOptions(device="cpu", **{"progress": False, **options})
    return ScoreConfig(str(world / "run"), (str(data or world / "data.jsonl"),), str(out), scoring=scoring)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(found: Path, expected: Path) -> None:
    """The same rows in the same order, the scores up to rounding."""
    found_rows, expected_rows = rows_of(found), rows_of(expected)
    assert [row | {"scores": None} for row in found_rows] == [row | {"scores": None} for row in expected_rows]
    for row, other in zip(found_rows, expected_rows, strict=True):
        assert row["scores"] == pytest.approx(other["scores"], abs=1e-5)


def before_row(patch: pytest.MonkeyPatch, number: int, fault) -> None:
    """Calls `fault` when the row of that number from now, from 0, is about to be written."""
    count, append = iter(range(1000)), Journal.append

    def faulty(self, row):
        if next(count) == number:
            fault()
        return append(self, row)

    patch.setattr(Journal, "append", faulty)


def ids_kept(out: Path) -> list[str]:
    """The ids of the rows in all journals."""
    ids = []
    for number in part_numbers(out):
        lines = Path(f"{out}.part-{number}" if number else f"{out}.part").read_bytes().split(b"\n")[1:-1]
        ids += [json.loads(line.rpartition(b"\t")[0])["id"] for line in lines]
    return ids


@pytest.mark.parametrize("prefix_tree", [False, True])
def test_any_number_of_ranks_gives_the_same(world, tmp_path, capsys, monkeypatch, prefix_tree):
    """Each record is computed once, with a question on one rank if its solutions share tokens; rank 0 alone speaks."""
    options = {"prefix_tree": prefix_tree, "max_length": 22}
    score(config_of(world, tmp_path / "alone", **options))
    assert [row["id"] for row in rows_of(tmp_path / "alone")] == [row["id"] for row in rows_of(world / "data.jsonl")]
    said = capsys.readouterr().out
    assert "records do not fit 22 tokens" in said
    scored, questions = [], set()
    scores, append = StepQModel.scores, Journal.append
    monkeypatch.setattr(
        StepQModel, "scores", lambda self, batch, plan: scored.append(len(batch.members)) or scores(self, batch, plan)
    )
    monkeypatch.setattr(Journal, "append", lambda self, row: questions.add(row["prompt"]) or append(self, row))

    def work(ranks):
        score(config_of(world, tmp_path / f"on {ranks.world}", progress=ranks.world == 3, **options), ranks)
        return sum(scored), questions

    (first, its_questions), (second, other_questions) = in_ranks(2, work)
    assert first + second == COUNT
    assert its_questions.isdisjoint(other_questions) == prefix_tree
    assert exit_codes(start_ranks(3, work, tmp_path)) == [0, 0, 0]
    texts = [(tmp_path / f"said-{rank}").read_text() for rank in range(3)]
    assert said in texts[0]
    assert "rank 0 of 3: 100%" in texts[0]
    assert texts[1:] == ["", ""]
    for count in (2, 3):
        assert_same(tmp_path / f"on {count}", tmp_path / "alone")
        assert part_numbers(tmp_path / f"on {count}") == []


@pytest.mark.fault(
    "a rank of `score` on several GPUs is killed; the command continues on fewer GPUs, then on one",
    how="`kill -9` in the middle, twice, and a flipped bit in the journal of another rank",
    lost="the records of the batches under way, and the damaged row",
    recovers="the same command on any number of ranks reads the journals of all, and no record is scored twice",
)
def test_killed_and_resumed_on_other_numbers_of_ranks(world, tmp_path, monkeypatch, capsys):
    """Begun by one rank, killed on three, damaged, killed on two, finished by one."""
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    score(config_of(world, tmp_path / "whole.jsonl"))

    def killed(victim, count):
        """Runs `score` on `count` ranks, of which one is killed in the middle of a batch, after the last of the others
        has begun. Returns what they say."""

        def kill():
            while not Path(f"{part}-2").exists() or Path(f"{part}-2").read_bytes().count(b"\n") < 3:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)

        def work(ranks):
            if ranks.rank == victim:
                before_row(monkeypatch, 4, kill)
            score(config_of(world, out), ranks)

        codes = exit_codes(start_ranks(count, work, tmp_path))
        assert codes == [-9 if rank == victim else 1 for rank in range(count)]
        texts = "".join((tmp_path / f"said-{rank}").read_text() for rank in range(count))
        assert texts.count("error:") == 1
        assert f"what is done is kept in {part}*, and the same command continues from there" in texts
        return texts

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_row(patch, 8, interrupt)
        with pytest.raises(KeyboardInterrupt):
            score(config_of(world, out))
    kept = [ids_kept(out)]
    killed(1, 3)
    kept.append(ids_kept(out))
    assert part_numbers(out) == [0, 1, 2]
    damaged = Path(f"{part}-2").read_bytes().splitlines(keepends=True)
    damaged[1] = damaged[1].replace(b"w", b"v", 1)
    Path(f"{part}-2").write_bytes(b"".join(damaged))
    assert f"{part}-2: 1 damaged (line 2): rows are done again" in killed(0, 2)
    kept.append(ids_kept(out))
    assert [len(ids) for ids in kept] == sorted({len(ids) for ids in kept})
    assert all(len(set(ids)) == len(ids) < COUNT for ids in kept[:2])
    assert [id for id in kept[2] if kept[2].count(id) > 1] in ([], [json.loads(damaged[1].split(b"\t")[0])["id"]] * 2)
    capsys.readouterr()
    appended, append = [], Journal.append
    monkeypatch.setattr(Journal, "append", lambda self, row: appended.append(row["id"]) or append(self, row))
    score(config_of(world, out))
    assert f"{part}-2: 1 damaged (line 2)" in capsys.readouterr().out
    assert_same(out, tmp_path / "whole.jsonl")
    assert part_numbers(out) == []
    assert len(appended) == COUNT - len(set(kept[2]))


def test_a_bad_record_is_told_once(world, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text((world / "data.jsonl").read_text() + '{"id": "r", "prompt": "w3", "completions": ["w4", 7]}\n')
    out = tmp_path / "out.jsonl"
    work = lambda ranks: score(config_of(world, out, bad), ranks)  # noqa: E731
    assert exit_codes(start_ranks(3, work, tmp_path)) == [1, 1, 1]
    texts = sorted((tmp_path / f"said-{rank}").read_text() for rank in range(3))
    assert texts[:2] == ["", ""]
    assert texts[2].startswith(f"pqm-fast: error: {bad}, line 61 (record r): ")
    assert texts[2].count("\n") == 1
    assert not list(tmp_path.glob("*out.jsonl*"))


def test_a_signal_to_all_ranks(world, tmp_path, monkeypatch):
    """Rank 1 has done its share, and waits for rank 0."""
    out, original = tmp_path / "out.jsonl", StepQModel.scores
    monkeypatch.setattr(watch, "LEAVE_SECONDS", 0.5)

    def work(ranks):
        def scores(self, batch, plan=None):
            if ranks.first:
                (tmp_path / "begun").touch()
                time.sleep(60)
            return original(self, batch, plan)

        monkeypatch.setattr(StepQModel, "scores", scores)
        score(config_of(world, out), ranks)

    processes = start_ranks(2, work, tmp_path)
    other = Path(f"{out}.part-1")
    while not (tmp_path / "begun").exists() or not other.exists() or other.read_bytes().count(b"\n") < 24:
        time.sleep(0.05)
    time.sleep(0.5)
    for process in processes:
        os.kill(process, signal.SIGTERM)
    codes = exit_codes(processes)
    texts = [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]
    kept = f"what is done is kept in {other}, and the same command continues from there"
    assert (codes, texts) == ([143, 143], [f"pqm-fast: terminated; {kept}\n", ""])


def flat(value, name="") -> dict:
    """The leaves of nested dicts and lists, by their paths."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, inner in items for path, leaf in flat(inner, f"{name}/{key}").items()}
    return {name: value}


def test_evaluate_gives_the_figures_of_one_rank(world, tmp_path, capsys):
    """With records that are left out for each of the reasons there are."""
    data = tmp_path / "data.jsonl"
    bad = [{"id": "a", "completions": []}, {"id": "b", "completions": ["w4 <eos>"]}]
    rows = [json.dumps(row | {"prompt": "w3", "labels": [True] * len(row["completions"])}) for row in bad]
    data.write_text((world / "data.jsonl").read_text() + "".join(f"{row}\n" for row in rows))
    others = tmp_path / "others.jsonl"
    others.write_text(Path(tiny.write_data(others, count=40, seed=1)).read_text().replace('"w3 w', '"w5 w'))
    config = EvaluateConfig(
        (str(data),),
        str(world / "run"),
        calibrate=(str(others),),
        read=ReadOptions(skip_bad=True),
        scoring=ScoringOptions(device="cpu", progress=False, max_length=30),
    )
    alone = evaluate(config)
    said = capsys.readouterr().out
    [skipped, cut_off, *_] = alone["left_out"]
    assert "skipped 2 bad records (1 no steps, 1 step token in the text)" in skipped
    assert "records do not fit 30 tokens" in cut_off

    results = in_ranks(
        3, lambda ranks: (evaluate(config, ranks), sys.stdout.flush(), Path(sys.stdout.name).read_text())
    )
    assert [(result, text) for result, _, text in results[1:]] == [({}, ""), ({}, "")]
    assert flat(results[0][0]) == pytest.approx(flat(alone), abs=1e-5)
    assert results[0][2] == said
