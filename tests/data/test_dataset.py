"""The token cache: stored tokens are intact or made again, never those of another data set or of a part of one."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
from flip import flip

from pqm_fast.data.dataset import COLUMNS
from pqm_fast.data.encode import Encoder, Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.token_cache import load_dataset
from pqm_fast.data.tokenise import Wanted
from pqm_fast.errors import PQMError


@pytest.fixture
def data(tmp_path):
    return tiny.write_data(tmp_path / "data.jsonl", count=30, questions=10)


class Slow:
    """Encodes only after an event, and signals when it has been called."""

    def __init__(self, encoder: Encoder, after: threading.Event, reached: threading.Event):
        self.encoder, self.after, self.reached = encoder, after, reached

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def __call__(self, records):
        self.reached.set()
        assert self.after.wait(30)
        return self.encoder(records)


def encoder() -> Encoder:
    return Encoder(tiny.tokenizer(), Template(step_token="last"), 64)


def load(data, cache: Path, by=None):
    return load_dataset([str(data)], ReadOptions(), by or encoder(), str(cache))


@pytest.mark.fault(
    "two runs with equal process numbers tokenise one data set into one cache",
    how="two writers in one process, the second from beginning to end while the first is in the middle",
    lost="nothing: the work of one of them is done twice",
    recovers="each writes a folder of its own; the first one that is whole takes the name, and both train on it",
)
def test_two_writers_with_one_process_number(data, tmp_path):
    go_on, reached, loaded = threading.Event(), threading.Event(), []
    slow = Slow(encoder(), go_on, reached)
    first = threading.Thread(target=lambda: loaded.append(load(data, tmp_path / "cache", slow)))
    first.start()
    assert reached.wait(30)
    loaded.append(load(data, tmp_path / "cache"))
    go_on.set()
    first.join(30)
    assert [len(dataset) for dataset in loaded] == [30, 30]
    assert len({dataset.digest for dataset in loaded}) == 1
    for name in COLUMNS:
        np.testing.assert_array_equal(loaded[0].columns[name], loaded[1].columns[name])
    assert [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")] == []


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.fault(
    "stored tokens are damaged",
    how="a flipped bit, a file cut in half and a file removed, in each column in turn",
    lost="nothing",
    recovers="every byte is checked when a cache is opened: the file is named, and the tokens are made again",
)
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damaged_tokens_are_named_and_made_again(data, tmp_path, damage):
    whole = load(data, tmp_path / "cache")
    expected = {name: column.copy() for name, column in whole.columns.items()}
    for name in (*COLUMNS, "info.json"):
        damage(whole.folder / name)
        again = load(data, tmp_path / "cache")
        [note] = again.notes
        assert note.startswith(f"{again.folder / name}: ")
        assert note.endswith("the stored tokens are damaged and were made again")
        assert again.digest == whole.digest
        for column in COLUMNS:
            np.testing.assert_array_equal(again.columns[column], expected[column])
    assert load(data, tmp_path / "cache").notes == []
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [whole.folder.name]


@pytest.mark.fault(
    "the data are edited, with the size and time that they had",
    how="a word replaced by one as long, and the file's times set back",
    lost="nothing",
    recovers="tokens and resumed runs are known by the contents of their files",
)
def test_an_edit_of_the_same_size_and_time_is_found(data, tmp_path):
    before, times = load(data, tmp_path / "cache"), os.stat(data)
    text = Path(data).read_text()
    Path(data).write_text(text.replace('"w3 w4"', '"w4 w3"'))
    os.utime(data, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (os.stat(data).st_size, os.stat(data).st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert load(data, tmp_path / "cache").digest != before.digest
    Path(data).write_text(text)  # another time, the same contents: the tokens are still there
    assert load(data, tmp_path / "cache").folder == before.folder


def test_outcomes_are_stored_if_they_are_wanted(data, tmp_path):
    """Each with its own tokens in the cache; the digest, by which earlier runs are resumed, stays."""
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    labels_alone = load(data, tmp_path / "cache")
    assert np.isnan(labels_alone.outcome).all()
    judge = {row["id"]: (1.0, 0.25, np.nan)[i % 3] for i, row in enumerate(rows)}
    judged = load_dataset(
        [str(data)], ReadOptions(), encoder(), str(tmp_path / "cache"), Wanted(lambda record: judge[record.id])
    )
    assert judged.folder != labels_alone.folder
    assert judged.digest == labels_alone.digest
    np.testing.assert_array_equal(judged.outcome, np.array(list(judge.values()), np.float32))
    assert judged[1].outcome == 0.25
    del rows[1]["labels"]
    Path(data).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(PQMError, match="record r1: no step has a label"):
        load(data, tmp_path / "cache")
    unlabelled = load_dataset([str(data)], ReadOptions(), encoder(), str(tmp_path / "cache"), Wanted(labels=False))
    assert len(unlabelled) == len(rows)
    assert np.isnan(unlabelled[1].labels).all()


def test_tokens_are_stored_under_all_that_they_depend_on(data, tmp_path):
    """Otherwise those of other options would be taken."""

    def folder(options=None, size=97, limit=64, **template):
        encoder = Encoder(tiny.tokenizer(size), Template(step_token="last", **template), limit)
        return load_dataset([data], options or ReadOptions(), encoder, str(tmp_path / "cache")).folder

    others = [
        folder(ReadOptions(after_error="wrong")),
        folder(size=96),
        folder(limit=32),
        folder(step_format="{step} "),
    ]
    assert len({folder(), *others}) == 5
    assert folder() == load(data, tmp_path / "cache").folder


def test_an_edit_while_the_data_are_read_is_found(data, tmp_path):
    """Otherwise the tokens of one state of the data would be stored under the key of another."""

    class Edits(Slow):
        def __call__(self, records):
            with open(data, "a") as file:
                file.write('{"prompt": "w3", "completions": ["w4"], "labels": [1]}\n')
            return self.encoder(records)

    with pytest.raises(PQMError, match="changed while being read"):
        load(data, tmp_path / "cache", Edits(encoder(), None, None))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.fault(
    "the disk is full while tokens are stored",
    how="a limit on the size of files (RLIMIT_FSIZE), below that of the tokens",
    lost="nothing",
    recovers="one message with the file and what to do; nothing is left in the cache",
)
def test_no_room_for_the_tokens(data, tmp_path, file_size_limit):
    with file_size_limit(200), pytest.raises(PQMError, match=r"the tokens cannot be stored \(File too large\)"):
        load(data, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(load(data, tmp_path / "cache")) == 30
