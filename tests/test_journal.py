"""What a run has got so far: every intact row is kept, every other one is named and done again, none is there twice."""

import errno
import json
import os
import zlib
from pathlib import Path

import pytest

from pqm_fast.errors import PQMError
from pqm_fast.journal import Journal

MEANS = {"seed": 1}


def row(i: int) -> dict:
    return {"number": i, "text": f"line {i}\t\u2028 or so"}


def written(out: Path, numbers) -> Journal:
    journal = Journal(out, MEANS)
    for i in numbers:
        journal.append(row(i))
    journal.close()
    return journal


def replayed(out: Path) -> tuple[Journal, list[dict]]:
    journal, rows = Journal(out, MEANS), []
    journal.replay(lambda place, found: rows.append(row(found["number"]) and found))
    return journal, rows


def flipped(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b"line", b"lime")


def merged(lines: list[bytes]) -> None:
    lines[3] = lines[3][:-1] + b"\x00"


def foreign(lines: list[bytes]) -> None:
    lines.insert(3, b'{"number": 3, "text": "of somebody else"}\n')


def unknown(lines: list[bytes]) -> None:
    lines.insert(3, b"[7]\t%08x\n" % zlib.crc32(b"[7]"))


def nested(lines: list[bytes]) -> None:
    lines.insert(3, b"[" * 100_000 + b"\n")


def zeros(lines: list[bytes]) -> None:
    lines[3:5] = [bytes(100), b"\n"]


def torn(lines: list[bytes]) -> None:
    lines[-1] = lines[-1][:9]


@pytest.mark.fault(
    "what an interrupted `score`, `sample` or `annotate` has got so far is damaged",
    how="a flipped bit, a lost line feed, a foreign line, zeros in place of lines, a last line that is cut off",
    lost="the damaged lines",
    recovers="they are named and done again; the others are kept, and none stands there twice",
)
@pytest.mark.parametrize(
    ("damage", "lines", "kept"),
    [
        (flipped, [4], [0, 1, 2, 4, 5]),
        (merged, [4], [0, 1, 2, 5]),
        (foreign, [4], [0, 1, 2, 3, 4, 5]),
        (unknown, [4], [0, 1, 2, 3, 4, 5]),
        (nested, [4], [0, 1, 2, 3, 4, 5]),
        (zeros, [4], [0, 1, 2, 5]),
        (torn, [], [0, 1, 2, 3, 4]),
    ],
)
def test_damaged_lines_are_done_again(tmp_path, capsys, damage, lines, kept):
    out = tmp_path / "out"
    part = written(out, range(6)).path
    content = part.read_bytes().splitlines(keepends=True)
    damage(content)
    part.write_bytes(b"".join(content))
    journal, rows = replayed(out)
    assert rows == [row(i) for i in kept]
    assert journal.damaged == lines
    named = f"{part}: 1 damaged (line 4): done again, the others are kept\n"
    assert capsys.readouterr().out == (named if lines else "")
    missing = [i for i in range(6) if i not in kept]
    places = {i: journal.append(row(i)) for i in missing}
    assert all(journal.row(place) == row(i) for i, place in places.items())
    journal.close()
    _, rows = replayed(out)
    assert rows == [row(i) for i in (*kept, *missing)]


@pytest.mark.fault(
    "the disk is full while results are written down",
    how="a limit on the size of files (RLIMIT_FSIZE) in the middle of a line",
    lost="nothing: that line is done again",
    recovers="one message with the file and what is kept; the same command goes on once there is room",
)
def test_no_room(tmp_path, file_size_limit):
    out = tmp_path / "out"
    journal = Journal(out, MEANS)

    def fill():
        with journal.kept():
            for i in range(100):
                journal.append(row(i))

    with file_size_limit(200), pytest.raises(PQMError, match=r"out.part: File too large; what is done is kept in"):
        fill()
    left = os.stat(journal.path).st_size
    assert left == 200
    journal, rows = replayed(out)
    assert 0 < len(rows) < 100
    assert rows == [row(i) for i in range(len(rows))]
    journal.append(row(len(rows)))
    journal.close()
    assert [found["number"] for found in replayed(out)[1]] == list(range(len(rows) + 1))


@pytest.mark.fault(
    "the output folder is removed while a command writes there",
    how="`OUT.part` removed between two rows, or another file in its place",
    lost="what was removed",
    recovers="noticed at the next row, with a message, instead of at the end",
)
@pytest.mark.parametrize("instead", [False, True])
def test_a_part_file_that_is_removed_is_noticed(tmp_path, instead):
    journal = written(tmp_path / "folder" / "out", range(2))
    journal, _ = replayed(tmp_path / "folder" / "out")
    journal.append(row(2))
    journal.path.unlink()
    if instead:
        journal.path.write_text("")
    with pytest.raises(PQMError, match=r"out.part: was removed while being written; run the command again"):
        journal.append(row(3))
    journal.close()


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out.part").symlink_to(tmp_path / "precious")
    (tmp_path / "out.part.json").write_text(json.dumps(MEANS))
    with pytest.raises(OSError) as caught:
        written(tmp_path / "out", [0])
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "precious").read_text() == "mine"
