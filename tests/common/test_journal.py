"""OUT.part: intact rows are kept, damaged ones are named and done again, and no row appears twice."""

import errno
import json
import os
import zlib
from pathlib import Path

import pytest

from pqm_fast.common.journal import Journal
from pqm_fast.errors import PQMError

INPUTS = {"seed": 1}


def row(i: int) -> dict:
    return {"number": i, "text": f"line {i}\t\u2028 or so"}


def written(out: Path, numbers) -> Journal:
    journal = Journal(out, INPUTS)
    for i in numbers:
        journal.append(row(i))
    journal.close()
    return journal


def replayed(out: Path) -> tuple[Journal, list[dict]]:
    journal, rows = Journal(out, INPUTS), []
    journal.replay(lambda offset, stored: rows.append(row(stored["number"]) and stored))
    return journal, rows


def flipped(lines: list[bytes]) -> None:
    lines[4] = lines[4].replace(b"line", b"lime")


def merged(lines: list[bytes]) -> None:
    lines[4] = lines[4][:-1] + b"\x00"


def foreign(lines: list[bytes]) -> None:
    lines.insert(4, b'{"number": 3, "text": "of somebody else"}\n')


def unknown(lines: list[bytes]) -> None:
    lines.insert(4, b"[7]\t%08x\n" % zlib.crc32(b"[7]", zlib.crc32(json.dumps(INPUTS).encode())))


def of_other_options(lines: list[bytes]) -> None:
    text = json.dumps(row(3)).encode()
    lines.insert(4, b"%s\t%08x\n" % (text, zlib.crc32(text, zlib.crc32(b'{"seed": 2}'))))


def first(lines: list[bytes]) -> None:
    lines[0] = lines[0].replace(b"seed", b"sEed")


def nested(lines: list[bytes]) -> None:
    lines.insert(4, b"[" * 100_000 + b"\n")


def zeros(lines: list[bytes]) -> None:
    lines[4:6] = [bytes(100), b"\n"]


def torn(lines: list[bytes]) -> None:
    lines[-1] = lines[-1][:9]


@pytest.mark.fault(
    "the finished rows of an interrupted `score`, `sample` or `annotate` are damaged",
    how="a flipped bit, also in the first line, which holds the options; a lost line feed, a foreign line, zeros in "
    "place of lines, a last line that is cut off",
    lost="the damaged rows",
    recovers="they are named and done again; the others are kept, and no row appears twice",
)
@pytest.mark.parametrize(
    ("damage", "lines", "kept"),
    [
        (flipped, [5], [0, 1, 2, 4, 5]),
        (merged, [5], [0, 1, 2, 5]),
        (foreign, [5], [0, 1, 2, 3, 4, 5]),
        (unknown, [5], [0, 1, 2, 3, 4, 5]),
        (of_other_options, [5], [0, 1, 2, 3, 4, 5]),
        (first, [1], [0, 1, 2, 3, 4, 5]),
        (nested, [5], [0, 1, 2, 3, 4, 5]),
        (zeros, [5], [0, 1, 2, 5]),
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
    assert journal.damaged_lines == lines
    named = [f"{part}: 1 damaged (line {line}): rows are done again, the others kept\n" for line in lines]
    assert capsys.readouterr().out == "".join(named)
    missing = [i for i in range(6) if i not in kept]
    offsets = {i: journal.append(row(i)) for i in missing}
    assert all(journal.row(offset) == row(i) for i, offset in offsets.items())
    journal.close()
    _, rows = replayed(out)
    assert rows == [row(i) for i in (*kept, *missing)]


def test_a_part_file_without_its_beginning(tmp_path):
    """Rows are recognised by their checksums. If none belongs to these options, the file is left to the user."""
    part = written(tmp_path / "out", range(2)).path
    content = part.read_bytes()
    part.write_bytes(b"x" + content)
    assert [stored["number"] for stored in replayed(tmp_path / "out")[1]] == [0, 1]
    other = Journal(tmp_path / "out", {"seed": 2})
    with pytest.raises(PQMError, match=r"its first line, .* no row belongs to these options; use the options it was"):
        other.replay(lambda offset, stored: None)
    assert part.read_bytes() == b"x" + content
    part.write_bytes(b"x" + content.splitlines(keepends=True)[0])  # no row is lost, so it starts over
    journal, rows = replayed(tmp_path / "out")
    assert rows == []
    journal.append(row(0))
    journal.close()
    assert part.read_bytes() == b"".join(content.splitlines(keepends=True)[:2])
    with pytest.raises(PQMError, match=r"was started with other options: seed \(1 then, 2 now\)"):
        Journal(tmp_path / "out", {"seed": 2})


@pytest.mark.fault(
    "the disk is full while results are written",
    how="a limit on the size of files (RLIMIT_FSIZE) in the middle of a line",
    lost="nothing: that line is done again",
    recovers="one message names the file and what is kept; the same command continues once there is room",
)
def test_no_room(tmp_path, file_size_limit):
    out = tmp_path / "out"
    journal = Journal(out, INPUTS)

    def fill():
        with journal.writing():
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
    assert [stored["number"] for stored in replayed(out)[1]] == list(range(len(rows) + 1))


@pytest.mark.fault(
    "the output folder is removed while a command writes there",
    how="`OUT.part` removed between two rows, or another file in its place",
    lost="what was removed",
    recovers="a message at the next row instead of at the end",
)
@pytest.mark.parametrize("instead", [False, True])
def test_a_part_file_that_is_removed_is_noticed(tmp_path, instead):
    (tmp_path / "folder").mkdir()
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
    with pytest.raises(OSError) as caught:
        written(tmp_path / "out", [0])
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "precious").read_text() == "mine"
