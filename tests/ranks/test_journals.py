"""The journals of several ranks: found and read by any number of ranks, each written by one."""

import json
import os
from pathlib import Path

import pytest
from rank_processes import exit_codes, start_ranks

from pqm_fast.common.journal import Journal, part_numbers, stored_inputs
from pqm_fast.errors import PQMError
from pqm_fast.ranks.group import ALONE
from pqm_fast.ranks.journals import Journals

INPUTS = {"seed": 1}


def left_behind(out: Path, numbers, inputs=INPUTS) -> None:
    for number in numbers:
        journal = Journal(out, inputs, number)
        for i in range(3):
            journal.append({"name": f"{number}.{i}"})
        journal.close()


def test_one_rank_reads_all(tmp_path):
    out = tmp_path / "out"
    left_behind(out, [0, 2, 11])
    for other in ("out.part-0", "out.part-02", "out.part-x", "out.part.part-1", "1out.part-1", "out_part-1"):
        (tmp_path / other).write_text("of somebody else")
    assert part_numbers(out) == [0, 2, 11]
    journals, places = Journals(out, INPUTS, ALONE), {}
    journals.replay(lambda place, row: places.update({row["name"]: place}))
    places["new"] = journals.append({"name": "new"})
    assert list(places) == [*(f"{number}.{i}" for number in (0, 2, 11) for i in range(3)), "new"]
    assert all(journals.row(place) == {"name": name} for name, place in places.items())
    assert json.loads(journals.text(places["11.2"])) == {"name": "11.2"}
    assert len((tmp_path / "out.part").read_bytes().splitlines()) == 5
    journals.remove()
    assert part_numbers(out) == []
    assert len(list(tmp_path.iterdir())) == 6


def test_other_options(tmp_path):
    out = tmp_path / "out"
    left_behind(out, [1, 2], {"seed": 2})
    assert stored_inputs(out) == {"seed": 2}
    with pytest.raises(PQMError, match=rf"out.part-1: was started .* seed \(2 then, 1 now\); delete {out}.part\* to"):
        Journals(out, INPUTS, ALONE)
    (tmp_path / "out.part-1").write_bytes(b"x" + (tmp_path / "out.part-1").read_bytes())
    assert stored_inputs(out) == {"seed": 2}  # of the first that is intact
    (tmp_path / "out.part-1").unlink()
    with pytest.raises(PQMError, match=r"out.part-2: was started .*; delete it to start over"):
        Journals(out, INPUTS, ALONE)


def test_what_is_kept(tmp_path):
    """Rows of this rank or of another, also those written since the start."""

    def message(journals):
        with pytest.raises(PQMError) as caught, journals.writing():
            raise PQMError("no")
        return str(caught.value)

    out = tmp_path / "out"
    journals = Journals(out, INPUTS, ALONE)
    assert message(journals) == "no"
    left_behind(out, [1])
    journals = Journals(out, INPUTS, ALONE)
    assert message(journals) == f"no; what is done is kept in {out}.part-1"
    journals.replay(lambda place, row: None)
    assert message(journals) == f"no; what is done is kept in {out}.part-1"
    journals.append({})
    assert message(journals) == f"no; what is done is kept in {out}.part*"


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_row_that_changes_before_the_end(tmp_path, damage):
    """What another rank has written is whole when rank 0 takes it, or the command fails."""
    out = tmp_path / "out"

    def work(ranks):
        journals = Journals(out, INPUTS, ranks)
        journals.replay(lambda place, row: None)
        with journals.writing():
            for name in "ab":
                journals.append({"name": f"{name} of rank {ranks.rank}"})
            if ranks.rank == 1:
                path = journals.own.path
                if damage == "flipped":
                    path.write_bytes(path.read_bytes().replace(b"a of rank", b"a of rink"))
                elif damage == "cut":
                    os.truncate(path, path.stat().st_size - 1)
                else:
                    path.unlink()
            journals.collect()

    assert exit_codes(start_ranks(2, work, tmp_path))[0] == 1
    error = f"pqm-fast: error: {out}.part-1: damaged while in use; run the command again; what is done is kept in "
    kept = f"{out}.part" if damage == "gone" else f"{out}.part*"
    assert (tmp_path / "said-0").read_text() == f"{error}{kept}\n"
