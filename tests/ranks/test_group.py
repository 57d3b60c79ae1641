"""Ranks: their messages, and what happens when one of them fails or is killed."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from rank_processes import exit_codes, in_ranks, start_ranks

from pqm_fast.errors import PQMError
from pqm_fast.ranks import watch
from pqm_fast.ranks.group import ALONE, join_ranks


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """The ranks have less time to leave."""
    monkeypatch.setattr(watch, "GRACE", 0.5)
    monkeypatch.setattr(watch, "LEAVE_SECONDS", 0.5)


def test_messages():
    def work(ranks):
        order = []
        ranks.one_by_machine(lambda: order.append(ranks.rank))
        return {
            "gather": ranks.gather(f"rank {ranks.rank}"),
            "from first": ranks.from_first(lambda: ranks.rank + 7),
            "any": [ranks.any(ranks.rank == 2), ranks.any(False)],
            "sum": ranks.add_up(torch.full((2,), 10.0**ranks.rank)).tolist(),
            "first": ranks.first,
        }

    results = in_ranks(3, work)
    same = {"gather": ["rank 0", "rank 1", "rank 2"], "from first": 7, "any": [True, False], "sum": [111.0, 111.0]}
    assert results == [same | {"first": rank == 0} for rank in range(3)]


def test_one_rank_needs_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks() as ranks:
        assert (ranks.world, ranks.gather(3), ranks.from_first(lambda: 4), ranks.any(1)) == (1, [3], 4, True)
        assert ranks.one_by_machine(lambda: 5) == 5
    assert ALONE.first


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MASTER_ADDR": ""}, "WORLD_SIZE is 2, but MASTER_ADDR is not set; start with torchrun, or unset WORLD_SIZE"),
        ({"MASTER_ADDR": "", "RANK": ""}, "but RANK, MASTER_ADDR are not set"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x', and must be a whole number"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT is 'abc', and must be a whole number"),
        ({"RANK": "2"}, "RANK is 2, and WORLD_SIZE 2; RANK must be from 0 to WORLD_SIZE - 1"),
        ({"WORLD_SIZE": "0"}, "RANK is 0, and WORLD_SIZE 0"),
    ],
)
def test_an_environment_that_makes_no_sense(monkeypatch, variables, message):
    whole = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (whole | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PQMError, match=message), join_ranks():
        pass


@pytest.mark.parametrize("alone", [False, True])
def test_a_lost_rank_without_handles_on_processes(tmp_path, monkeypatch, alone):
    """On an old kernel; and where each rank has a machine of its own, so that only the connection tells."""

    def refused(process):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refused)

    def work(ranks):
        ranks.say_when_lost(lambda: "step 5 is kept")
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.add_up(torch.zeros(1))
        time.sleep(60)

    processes = start_ranks(2, work, tmp_path, machine=lambda rank: rank if alone else 0)
    assert os.waitpid(processes[1], 0)[1] == signal.SIGKILL
    assert exit_codes(processes[:1]) == [1]
    text = "rank 0 has lost the connection to another rank" if alone else "ended without a word"
    assert text in said(tmp_path, 2)[0]
    assert said(tmp_path, 2)[0].endswith("step 5 is kept\n")
    assert "Traceback" not in said(tmp_path, 2)[0]


def said(folder, world):
    return [(folder / f"said-{rank}").read_text() for rank in range(world)]


@pytest.mark.fault(
    "a rank of a command on several GPUs is killed, while the others wait for it",
    how="`kill -9`",
    lost="for `train`, the steps since the last checkpoint",
    recovers="the others end within seconds, with one message in all; `torchrun --max-restarts` starts them anew",
)
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_ends_the_others(tmp_path, victim):
    def work(ranks):
        ranks.say_when_lost(lambda: "step 5 is kept")
        if ranks.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.add_up(torch.zeros(1))
        time.sleep(60)

    started = time.monotonic()
    codes = exit_codes(start_ranks(3, work, tmp_path))
    assert time.monotonic() - started < 15
    assert codes == [-9 if rank == victim else 1 for rank in range(3)]
    [message] = [text for text in said(tmp_path, 3) if text]
    assert message.startswith(f"pqm-fast: error: rank {victim} (process ")
    assert message.endswith("it was killed, or it crashed; the other ranks are ended. step 5 is kept\n")


def test_a_rank_is_killed_while_they_form_groups(tmp_path, monkeypatch):
    real = dist.new_group

    def new_group(**named):
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(**named)

    monkeypatch.setattr(dist, "new_group", new_group)
    started = time.monotonic()
    assert exit_codes(start_ranks(2, lambda ranks: None, tmp_path)) == [1, -9]
    assert time.monotonic() - started < 15
    assert "rank 1 (process " in said(tmp_path, 2)[0]


@pytest.mark.parametrize("failing", [{1}, {0, 1, 2}])
def test_an_error_is_told_once(tmp_path, failing):
    def work(ranks):
        if ranks.rank in failing:
            raise PQMError("data.jsonl: no such file")
        ranks.barrier()

    codes = exit_codes(start_ranks(3, work, tmp_path))
    assert codes == [1, 1, 1]
    assert sorted(said(tmp_path, 3)) == ["", "", "pqm-fast: error: data.jsonl: no such file\n"]


def test_an_unforeseen_error_has_one_traceback(tmp_path):
    def work(ranks):
        if ranks.rank == 1:
            raise RuntimeError("broken")
        ranks.barrier()

    started = time.monotonic()
    codes = exit_codes(start_ranks(2, work, tmp_path))
    assert time.monotonic() - started < 15
    assert codes == [1, 70]
    assert said(tmp_path, 2)[0] == ""
    assert "RuntimeError: broken" in said(tmp_path, 2)[1]


def test_a_signal_to_all_is_told_by_one(tmp_path):
    def work(ranks):
        (tmp_path / f"ready-{ranks.rank}").touch()
        time.sleep(60)

    processes = start_ranks(2, work, tmp_path)
    while len(list(tmp_path.glob("ready-*"))) < 2:
        time.sleep(0.02)
    for process in processes:
        os.kill(process, signal.SIGTERM)
    assert exit_codes(processes) == [143, 143]
    assert sorted(said(tmp_path, 2)) == ["", "pqm-fast: terminated\n"]


def test_a_signal_to_one_ends_all(tmp_path):
    def work(ranks):
        (tmp_path / f"ready-{ranks.rank}").touch()
        if ranks.rank == 1:
            time.sleep(60)
        ranks.add_up(torch.zeros(1))

    processes = start_ranks(2, work, tmp_path)
    while len(list(tmp_path.glob("ready-*"))) < 2:
        time.sleep(0.02)
    os.kill(processes[1], signal.SIGTERM)
    assert exit_codes(processes) == [143, 143]
    assert said(tmp_path, 2) == ["", "pqm-fast: terminated\n"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_silent_machine_is_noticed(tmp_path, monkeypatch, victim):
    """Two ranks on two machines, as torchrun numbers them; one of them is stopped, as by a lost power line."""
    monkeypatch.setattr(watch, "SILENT_SECONDS", 1.0)
    stopped, other = victim, 1 - victim

    def work(ranks):
        (tmp_path / f"ready-{ranks.rank}").touch()
        time.sleep(60)

    processes = start_ranks(2, work, tmp_path, machine=lambda rank: rank)
    while len(list(tmp_path.glob("ready-*"))) < 2:
        time.sleep(0.02)
    os.kill(processes[stopped], signal.SIGSTOP)
    assert exit_codes([processes[other]]) == [1]
    os.kill(processes[stopped], signal.SIGKILL)
    exit_codes([processes[stopped]])
    assert "has been silent for 1 s; the other ranks are ended" in said(tmp_path, 2)[other]
