"""Files and folders appear whole or not at all, even if writers collide or are killed."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from pqm_fast.cli import main
from pqm_fast.common.files import ABANDONED_SECONDS, atomic_file, atomic_folder, remove_leftovers, write_json
from pqm_fast.errors import PQMError

KILLED = """
import os, signal, sys
from pathlib import Path
from pqm_fast.common.files import atomic_file, atomic_folder
path = Path(sys.argv[1])
with (atomic_folder if sys.argv[2] == "folder" else atomic_file)(path) as temporary:
    (temporary / "part" if sys.argv[2] == "folder" else temporary).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.fault(
    "a process is killed while it writes a file or folder",
    how="`kill -9` in the middle of `atomic_file` and `atomic_folder`",
    lost="what was being written; an earlier file of that name stays",
    recovers="the next writer of that name removes the temporary folder, whose lock nobody holds any more",
)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_leaves_is_removed_by_the_next(tmp_path, kind):
    path = tmp_path / "out"
    died = subprocess.run([sys.executable, "-c", KILLED, str(path), kind], check=False)
    assert died.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    write_json(tmp_path / "other", 1)
    assert left.exists()  # it belongs to another name
    with atomic_file(path) as living:
        living.write_text("new")
        remove_leftovers(tmp_path)
        assert living.exists()  # its writer is alive
        assert not left.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out"]
    assert path.read_text() == "new"


@pytest.mark.fault(
    "two processes with the same number write one file, as in two containers that share a folder",
    how="two writers at once in one process",
    lost="nothing",
    recovers="each has a temporary folder whose name cannot be guessed; the last one to finish wins",
)
def test_writers_with_one_process_number_do_not_meet(tmp_path):
    with atomic_folder(tmp_path / "out") as first:
        (first / "a").write_text("first")
        with suppress(ZeroDivisionError), atomic_folder(tmp_path / "out") as second:
            (second / "a").write_text("second")
            raise ZeroDivisionError
        with atomic_folder(tmp_path / "other") as third:
            (third / "a").write_text("third")
        assert (first / "a").read_text() == "first"
    assert (tmp_path / "out" / "a").read_text() == "first"


@pytest.mark.fault(
    "a link is in the place of a temporary file",
    how="symbolic links in the output folder, with a guessable name and in the form of the real ones",
    lost="nothing",
    recovers="the link is not followed: temporary folders have random names and are private to their user",
)
def test_links_are_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / f".a.tmp-{os.getpid()}").symlink_to(precious / "file")
    (out / ".a.tmp-abcdefgh").symlink_to(precious)
    os.utime(precious, (0, 0))
    with atomic_file(out / "a") as temporary:
        assert stat.S_IMODE(temporary.parent.stat().st_mode) == 0o700
        temporary.write_text("whole")
    assert (precious / "file").read_text() == "mine"
    assert (out / "a").read_text() == "whole"


def test_new_files_and_folders_have_the_usual_permissions(tmp_path):
    write_json(tmp_path / "file", 1)
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("")
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~before
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~before


def test_a_temporary_folder_without_a_lock_stays_for_an_hour(tmp_path):
    """Its writer may be about to make one."""
    left = tmp_path / ".out.tmp-abcdefgh"
    left.mkdir()
    remove_leftovers(tmp_path)
    assert left.exists()
    os.utime(left, (0, time.time() - ABANDONED_SECONDS - 1))
    remove_leftovers(tmp_path)
    assert not left.exists()


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    for name in ("old", "new"):  # the target of the second does not exist yet
        (tmp_path / name).symlink_to(f"a/{name}")
        write_json(tmp_path / name, 7)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "a" / name).read_text() == "7\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe.html", "pipe.html: is not a regular file but a device, a pipe or a socket; name another"),
        ("link.html", "link.html: is not a regular file"),
        ("device.html", "device.html: is not a regular file"),
        ("folder.html", "folder.html: is a folder; name a file to write"),
        ("file/a/b.html", "file is a file, so nothing can be below it; name another"),
    ],
)
def test_only_regular_files_are_replaced(tmp_path, capsys, name, message):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "link.html").symlink_to("pipe.html")
    if name == "device.html":
        try:
            os.mknod(tmp_path / "device.html", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except OSError:
            pytest.skip("needs the right to make a device")
    before = {path.name: path.lstat().st_mode for path in tmp_path.iterdir()}
    path = tmp_path / name
    with pytest.raises(PQMError, match=re.escape(message)):
        write_json(path, 1)
    # checked before anything is read
    for command in (["evaluate"], ["report", "nowhere"], ["score", "--model", "nowhere"]):
        data = [] if command[0] == "report" else ["--data", "nowhere"]
        assert main([*command, *data, "--out", str(path)]) == 1
        assert str(path) in (error := capsys.readouterr().err)
        assert message in error
    assert {path.name: path.lstat().st_mode for path in tmp_path.iterdir()} == before


def test_an_error_names_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/out'"),
        atomic_file(tmp_path / "out"),
        open("/dev/full", "w") as full,
    ):
        full.write("x")
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_file(tmp_path / "out"):
        (tmp_path / "elsewhere").read_text()
    assert list(tmp_path.iterdir()) == []
