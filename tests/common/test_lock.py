"""Two writers at once: the second gets an error that names the first."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pqm_fast.cli import main
from pqm_fast.common.lock import SECOND_TRY, LockFile, is_empty, locked, look_at_lock
from pqm_fast.errors import PQMError

HOLD = """
import sys, time
from pathlib import Path
from pqm_fast.common.lock import locked
with locked(Path(sys.argv[1]), "score", folder=sys.argv[2] == "folder"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Starts a process that holds the lock."""
    children = []

    def start(path: Path, kind: str) -> subprocess.Popen:
        arguments = [sys.executable, "-c", HOLD, str(path), kind]
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        children.append(child)
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()


@pytest.mark.fault(
    "a process that holds a lock is killed",
    how="`kill -9` of the process",
    lost="nothing",
    recovers="the system releases the lock; the next command takes it and cleans up",
)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_second_is_told_who_holds_it(hold, tmp_path, kind):
    path, folder = tmp_path / "new" / "out", kind == "folder"
    child = hold(path, kind)
    with (
        pytest.raises(PQMError, match=rf"out: `pqm-fast score` \(process {child.pid} on .+, since 2.*\) writes there"),
        locked(path, "train", folder=folder),
    ):
        pytest.fail("two hold it")
    assert is_empty(path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with locked(path, "train", folder=folder):
        pass
    assert [p.name for p in tmp_path.rglob("*") if not p.is_dir()] == []


@pytest.mark.fault(
    "two commands write to the same output",
    how="each command with an output that another one has locked",
    lost="nothing",
    recovers="the second ends at once with code 1 and says who writes there: command, process, host, since when",
)
@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("train --model m --data d", True),
        ("study", True),
        ("demo", True),
        ("score --model m --data d", False),
        ("sample --policy arithmetic:copy --data d", False),
        ("annotate --policy arithmetic:copy --data d", False),
    ],
)
def test_each_command_takes_the_lock(tmp_path, capsys, command, folder):
    """It does so before anything else: missing models and data are not reported first."""
    out = tmp_path / "out"
    with locked(out, "train", folder=folder):
        assert main([*command.split(), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"pqm-fast: error: {out}: `pqm-fast train` (process {os.getpid()} on ")
    assert error.endswith(") writes there; wait for it, or choose another --out\n")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path / "a" / "b" / "run", "train", folder=True):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "pool.jsonl", "sample"):
        (tmp_path / "a" / "pool.jsonl").write_text("x")
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "pool.jsonl"]
    with locked(tmp_path / "gone" / "run", "train", folder=True):
        (tmp_path / "gone" / "run" / ".lock").unlink()
        (tmp_path / "gone" / "run").rmdir()  # the writer notices this, not the lock


def test_a_lock_that_was_removed_is_not_held(tmp_path):
    """A run folder that was deleted and made again belongs to the process that made it."""
    first = locked(tmp_path / "out", "score")
    first.__enter__()
    os.unlink(tmp_path / ".out.lock")
    with locked(tmp_path / "out", "score"):
        first.__exit__(None, None, None)  # must not remove the other's file
        assert (tmp_path / ".out.lock").exists()
        with pytest.raises(PQMError, match="writes there"), locked(tmp_path / "out", "score"):
            pytest.fail("two hold it")


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".out.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError), locked(tmp_path / "out", "score"):
        pytest.fail("it was followed")
    assert (tmp_path / "precious").read_text() == "mine"


def test_looking_at_a_lock_disturbs_nobody(tmp_path):
    """A shared lock that is let go a moment later, as `look_at_lock` does, does not stop a command that starts."""
    assert look_at_lock(tmp_path) is None
    with locked(tmp_path, "train", folder=True):
        seen = look_at_lock(tmp_path)
        assert seen.held
        assert (seen.holder.what, seen.holder.pid) == ("train", os.getpid())
    (tmp_path / ".lock").touch()
    assert look_at_lock(tmp_path) == LockFile(held=False, holder=None)
    handle = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    release = threading.Timer(SECOND_TRY / 5, lambda: fcntl.flock(handle, fcntl.LOCK_UN))
    release.start()
    with locked(tmp_path, "train", folder=True):
        assert look_at_lock(tmp_path).held
    release.join()
    os.close(handle)
