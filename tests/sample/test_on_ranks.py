"""`sample` and `annotate` on several ranks: byte for byte the file of one rank, and the same summary."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from part_file import rows_in
from rank_processes import exit_codes, start_ranks
from worlds import questions, write

from pqm_fast.common.journal import part_numbers
from pqm_fast.data.formats import ReadOptions
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.sample.annotate import annotate
from pqm_fast.sample.arithmetic_policy import ArithmeticPolicy
from pqm_fast.sample.open_policy import open_policy
from pqm_fast.sample.options import AnnotateConfig, PolicyOptions, SampleConfig
from pqm_fast.sample.sample_solutions import sample

OTHER_WORLD = [{"id": f"other{i}", "question": f"What is {i} - 2?", "answer": "5"} for i in range(5)]


def sampling(folder: Path) -> Callable[[Path, Ranks], Path]:
    """Two policies that write solutions of 20 questions; they refuse five others."""
    data = write(folder / "questions.jsonl", [*questions(20), *OTHER_WORLD])
    policies = ("arithmetic:careless", "arithmetic:strong")

    def run(out: Path, ranks: Ranks) -> Path:
        return sample(SampleConfig(policies, (str(data),), str(out), n=3, skip_refused=True, progress=False), ranks)

    return run


def annotating(folder: Path) -> Callable[[Path, Ranks], Path]:
    """Rollouts from solutions of 20 questions; those of others are refused, and one has no answer."""
    data = write(folder / "questions.jsonl", questions(20))
    sample(SampleConfig(("arithmetic:careless",), (str(data),), str(folder / "pool"), n=4, progress=False))
    unusable = [{"id": row["id"], "prompt": row["question"], "completions": ["a", "5"]} for row in OTHER_WORLD]
    refused = write(folder / "refused.jsonl", [row | {"answer": "5"} for row in unusable[1:]] + unusable[:1])
    sources = (str(folder / "pool"), str(refused))

    def run(out: Path, ranks: Ranks) -> Path:
        read = ReadOptions(skip_bad=True)
        config = AnnotateConfig("arithmetic:strong", sources, str(out), rollouts=2, read=read, progress=False)
        return annotate(config, ranks)

    return run


def said(folder: Path, world: int) -> list[str]:
    return [(folder / f"said-{rank}").read_text() for rank in range(world)]


@pytest.mark.parametrize("command", [sampling, annotating])
def test_any_number_of_ranks_writes_the_same(tmp_path, capsys, command):
    run = command(tmp_path)
    run(tmp_path / "alone", ALONE)
    summary = capsys.readouterr().out
    assert (
        "left out 5 questions" if command is sampling else "skipped 5 bad records (4 refused, 1 no answer)"
    ) in summary
    assert exit_codes(start_ranks(3, lambda ranks: run(tmp_path / "together", ranks), tmp_path)) == [0, 0, 0]
    assert (tmp_path / "together").read_bytes() == (tmp_path / "alone").read_bytes()
    assert said(tmp_path, 3) == [summary, "", ""]
    assert part_numbers(tmp_path / "together") == []


@pytest.mark.fault(
    "a rank of `sample` or `annotate` on several GPUs is killed; the command continues on fewer",
    how="`kill -9` in the middle",
    lost="the completions under way",
    recovers="the same command reads the journals of all ranks and asks for nothing twice; the file is as of one rank",
)
@pytest.mark.parametrize("command", [sampling, annotating])
def test_killed_and_resumed_on_fewer_ranks(tmp_path, monkeypatch, command):
    run, out = command(tmp_path), tmp_path / "out"
    asked, original = [], ArithmeticPolicy._complete
    monkeypatch.setattr(ArithmeticPolicy, "_complete", lambda self, r: asked.append(r) or original(self, r))
    run(tmp_path / "whole", ALONE)
    needed = len({(request.question, request.steps, request.seed) for request in asked})

    def work(ranks):
        def killed(self, request):
            asked.append(request)
            if ranks.rank == 2 and len(asked) == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, request)

        asked.clear()
        monkeypatch.setattr(ArithmeticPolicy, "_complete", killed)
        run(out, ranks)

    assert exit_codes(start_ranks(3, work, tmp_path)) == [1, 1, -9]
    assert "".join(said(tmp_path, 3)).count("what is done is kept in") == 1
    rows = sum(map(rows_in, tmp_path.glob("out.part*")))
    assert rows_in(tmp_path / "out.part-2") == 9

    def resume(ranks):
        asked.clear()
        run(out, ranks)
        (tmp_path / f"asked-{ranks.rank}").write_text(str(sum(not r.question.startswith("What") for r in asked)))

    refused = sum(request.question.startswith("What") for request in asked)
    assert exit_codes(start_ranks(2, resume, tmp_path)) == [0, 0]
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert sum(int((tmp_path / f"asked-{rank}").read_text()) for rank in range(2)) == needed - refused - rows
    assert part_numbers(out) == []


def test_ranks_divide_the_requests_to_a_server(serve):
    server = serve(lambda body: "a: 7 -2 =5")
    for world, parallel in ((1, 10), (4, 2), (20, 1)):
        policy = open_policy(server.policy, PolicyOptions(parallel=10), ranks=Ranks(world=world))
        assert policy.room() == parallel
        policy.close()
