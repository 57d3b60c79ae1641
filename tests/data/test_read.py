"""Files of every kind, real ones with the counts in their README, and every way in which they can be bad."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqm_fast.data import Record, read_records, sources
from pqm_fast.data.formats import FORMATS, ReadOptions, recognise
from pqm_fast.data.read import BadRecord, SkipSummary, read_all
from pqm_fast.errors import PQMError

datasets = pytest.importorskip("datasets")

RAWS = [
    {"id": "a", "prompt": "1+1?", "completions": ["é", "x\u2028y"], "labels": [True, 0.5]},
    {"prompt": "2+2?", "completions": ["z"], "labels": None, "error_type": None},
]
RECORDS = [
    Record("a", "1+1?", ["é", "x\u2028y"], [1.0, 0.5]),
    Record("f:2", "2+2?", ["z"], None, {"error_type": None}),
]
SKIP = ReadOptions(skip_bad=True)


def zipped():
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("f.jsonl", "{}")
        return file.getvalue()


def tarred():
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("f.jsonl"))
        return file.getvalue()


def json_lines(raws):
    return "".join(json.dumps(raw, ensure_ascii=False) + "\n" for raw in raws).encode()


def same(records, expected):
    """Parquet and data sets give every record all columns, so `extra` gains nulls."""
    assert [Record(r.id, r.prompt, r.steps, r.labels) for r in records] == [
        Record(r.id, r.prompt, r.steps, r.labels) for r in expected
    ]
    assert all(value is None for record in records for value in record.extra.values())


@pytest.fixture
def write(tmp_path):
    """Call with (bytes or raw records, name): the path of a file that holds them."""

    def _write(content, name="f.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json_lines(content))
        return path

    return _write


def refused(path, options=SKIP, format="auto"):
    """The message of the error that reading raises even with `skip_bad`."""
    with pytest.raises(PQMError) as caught:
        list(read_records(path, format, options=options))
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


# What can be read


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("f.jsonl", json_lines(RAWS), id="lines"),
        pytest.param("f.json", json_lines(RAWS).replace(b"\n", b"\r\n"), id="crlf"),
        pytest.param("f.ndjson", json_lines(RAWS).rstrip(), id="no-final-newline"),
        pytest.param("f", BOM + json_lines(RAWS), id="bom"),
        pytest.param("f.jsonl", json.dumps(RAWS).encode(), id="list"),
        pytest.param("f", b"\n \t\n" + json.dumps(RAWS, indent=1).encode() + b"\n\n", id="indented-list"),
        pytest.param("f.json", BOM + json.dumps(RAWS, ensure_ascii=False).encode(), id="bom-list"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_json_whatever_the_name(write, name, content, pack):
    assert list(read_records(write(pack(content), name))) == RECORDS


@pytest.mark.parametrize("name", ["f.jsonl.gz", "f.json.gz", "f.gz"])
def test_stem_of_compressed_files(write, name):
    assert list(read_records(str(write(gzip.compress(json_lines(RAWS)), name)))) == RECORDS


def test_blank_lines_are_passed_over_but_counted(write):
    content = b"\n\n" + json_lines(RAWS[1:]) + b"  \n" + json_lines(RAWS[1:])
    assert [record.id for record in read_records(write(content))] == ["f:3", "f:5"]


@pytest.mark.parametrize("indent", [None, 2])
def test_single_json_object(write, indent):
    path = write(json.dumps(RAWS[0], indent=indent).encode(), "f.json")
    assert list(read_records(path)) == RECORDS[:1]


def test_streams_lines(write):
    path = write(json_lines([{**RAWS[0], "id": 0}]) + b"no JSON\n")
    records = read_records(path)
    assert next(records).id == "0"
    with pytest.raises(BadRecord):
        next(records)


def test_parquet(tmp_path):
    path = tmp_path / "f.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([RAWS[0] | {"labels": [1.0, 0.5]}, RAWS[1]]), path)
    same(list(read_records(path)), RECORDS)


def test_parquet_is_read_in_parts(tmp_path, monkeypatch):
    raws = [{"prompt": f"q{i}", "completions": ["s"]} for i in range(5000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(raws), tmp_path / "f.parquet", row_group_size=1500)
    converted = []
    original = pyarrow.parquet.ParquetFile.iter_batches

    def counting(self, **options):
        for batch in original(self, **options):
            converted.append(len(batch))
            yield batch

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counting)
    records = read_records(tmp_path / "f.parquet")
    assert [r.prompt for r in islice(records, 10)] == [f"q{i}" for i in range(10)]
    assert sum(converted) < 1500
    assert [r.id for r in records][-1] == "f:5000"


def test_parquet_of_nested_formats(tmp_path):
    raw = {"question": "q", "responses": [{"text": "a\nb", "model_name": "m"}, {"steps": ["c"]}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([raw]), tmp_path / "f.parquet")
    records = list(read_records(tmp_path / "f.parquet"))
    assert [(r.id, r.steps, r.extra.get("policy")) for r in records] == [
        ("f:1/1", ["a", "b"], "m"),
        ("f:1/2", ["c"], None),
    ]


@pytest.fixture
def saved(tmp_path):
    """A folder f saved by `datasets` from a Dataset, and a folder d from a DatasetDict of two splits."""
    data = datasets.Dataset.from_list([RAWS[0] | {"labels": [1.0, 0.5]}, RAWS[1]])
    data.save_to_disk(tmp_path / "f")
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "d")
    datasets.DatasetDict(only=data).save_to_disk(tmp_path / "o")
    data.select([0]).with_format("numpy").save_to_disk(tmp_path / "n")
    return tmp_path


def test_saved_data_set(saved):
    same(list(read_records(saved / "f")), RECORDS)
    same(list(read_records(f"{saved}/f/")), RECORDS)
    same(list(read_records(saved / "n")), RECORDS[:1])


def test_saved_splits(saved):
    assert [r.id for r in read_records(f"{saved}/d:train")] == ["a", "d:train:2"]
    assert [r.id for r in read_records(f"{saved}/d:test")] == ["d:test:1"]
    assert [r.id for r in read_records(saved / "o")] == ["a", "o:only:2"]
    assert [r.id for r in read_records(f"{saved}/o:only")] == ["a", "o:only:2"]
    assert f"has several splits; choose one: {saved}/d:train, {saved}/d:test" in refused(saved / "d")
    with pytest.raises(PQMError, match="d: has no split dev; choose one"):
        list(read_records(f"{saved}/d:dev"))
    with pytest.raises(PQMError, match="f: has no splits; leave out :train"):
        list(read_records(f"{saved}/f:train"))


def test_folders_and_patterns(write, tmp_path):
    write(RAWS[1:], "set/b/f.jsonl")
    write(gzip.compress(json_lines(RAWS[1:])), "set/a.jsonl.gz")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RAWS[1:]), tmp_path / "set" / "c.parquet")
    for other in ("README.md", "LICENSE", ".gitattributes", ".cache/x.json"):
        write(b"no data", f"set/{other}")
    folder = tmp_path / "set"
    assert [r.id for r in read_records(folder)] == ["a:1", "f:1", "c:1"]
    assert [r.id for r in read_records(f"{folder}/*.*[tz]")] == ["a:1", "c:1"]
    assert [r.id for r in read_records(f"{folder}/**/f.jsonl")] == ["f:1"]
    assert [r.id for r in read_records(f"{folder}/b/**")] == ["f:1"]  # the folder and the file in it
    assert "matches no file; check the pattern" in refused(f"{folder}/*.csv")
    write(b"a,b", "set/d.csv")
    assert f"holds d.csv, which is not a data file ({', '.join(sources._DATA_SUFFIXES)}); remove it, or" in refused(
        folder
    )
    # a name that a pattern could be is a name if there is such a file
    assert [r.id for r in read_records(write(RAWS[1:], "x[1].jsonl"))] == ["x[1]:1"]


def test_a_folder_leaves_nothing_out_but_hidden_files(write, tmp_path):
    folder = write(RAWS, "set/f.jsonl").parent
    assert len(list(read_records(write(RAWS[1:], "set/_more/_g.jsonl").parent.parent))) == 3
    write(RAWS[1:], "elsewhere/h.jsonl")
    links = {"broken.jsonl": ("missing", "a broken link"), "linked": (tmp_path / "elsewhere", "a link to a folder")}
    for name, (target, what) in links.items():
        (folder / name).symlink_to(target)
        assert refused(folder / name if name == "broken.jsonl" else folder).startswith(f"{folder / name}: is {what}")
        assert refused(folder).startswith(f"{folder / name}: is {what}")
        (folder / name).unlink()
    os.mkfifo(folder / "pipe.jsonl")
    assert refused(folder).startswith(f"{folder / 'pipe.jsonl'}: is neither a file nor a folder; remove it")
    (folder / "pipe.jsonl").unlink()
    write(b"", "set/_SUCCESS")
    assert "holds _SUCCESS, which is not a data file" in refused(folder)


@pytest.mark.parametrize(
    ("again", "named"),
    [
        ("set/f.jsonl", "set/f.jsonl"),
        ("./set/../set/f.jsonl", "./set/../set/f.jsonl"),
        ("set", "set/f.jsonl"),
        ("link.jsonl", "link.jsonl"),
        ("s*/**", "set/f.jsonl"),
    ],
)
def test_data_named_twice_are_refused(write, monkeypatch, tmp_path, again, named):
    path = write(RAWS[1:], "set/f.jsonl")
    (tmp_path / "link.jsonl").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PQMError) as caught:
        list(read_all(["set/f.jsonl", again]))
    also = "" if named == "set/f.jsonl" else ", also as set/f.jsonl"
    assert str(caught.value) == f"{named}: is named twice{also}; name it once, or its records count double"


def test_data_sets_named_twice_are_refused(saved):
    assert len(list(read_all([f"{saved}/d:train", f"{saved}/d:test"]))) == 3
    for one, two in [("d:train", "./d:train"), ("o", "o:only"), ("o:only", "o"), ("f", "f/")]:
        with pytest.raises(PQMError, match=f"{saved}/{two}: is named twice"):
            list(read_all([f"{saved}/{one}", f"{saved}/{two}"]))


def test_hub_data_set_as_datasets_loads_it(write, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder, load_dataset = write(RAWS[1:], "downloaded/train.jsonl").parent, datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name: load_dataset(str(folder)))
    same(list(read_records("org/set")), [replace(RECORDS[1], id="set:train:1")])


def test_hub_data_set(monkeypatch, tmp_path):
    data = datasets.Dataset.from_list([RAWS[1]])
    asked = []

    def load_dataset(name):
        asked.append(name)
        return datasets.DatasetDict(train=data, test=data)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert [r.id for r in read_records("org/my-set_1.5:test")] == ["my-set_1.5:test:1"]
    with pytest.raises(PQMError, match=r"several splits; choose one: org/set:train, org/set:test"):
        list(read_records("org/set"))
    assert asked == ["org/my-set_1.5", "org/set"]
    # a local path comes first; the name of a missing file is no hub name
    data.save_to_disk(tmp_path / "org" / "set")
    assert [r.id for r in read_records("org/set")] == ["set:1"]
    assert "no file or folder of this name" in refused("org/train.jsonl")
    assert len(asked) == 2


def test_hub_data_set_out_of_reach():
    message = refused("no-such-org/no-such-set")
    assert "cannot be loaded as a data set" in message
    assert "check the name and the network" in message


# The real files


def test_prmbench(shared_data):
    path = shared_data("prmbench_train.jsonl")
    with pytest.raises(BadRecord) as caught:
        list(read_records(path))
    bad = caught.value
    assert str(bad).startswith(f"{path}, line 661 (record prm_train_p1_303/confidence): step 2 of ")
    assert "is empty" in bad.reason
    assert (bad.path, bad.line, bad.kind) == (str(path), 661, "empty step")

    skipped = SkipSummary()
    records = list(read_records(path, options=SKIP, skipped=skipped))
    assert skipped.counts == {"empty step": 1}
    assert len(records) + skipped.total == 2752
    bad_labels = json.loads(path.read_text().split("\n")[660])["labels"]
    labels = [label for record in records for label in record.labels] + bad_labels
    assert len(labels) == 41071
    assert round(sum(labels) / len(labels), 3) == 0.878
    assert round(len(labels) / 2752, 1) == 14.9
    assert max(len(record.steps) for record in records) == 107
    assert set(records[0].extra) == {"error_type"}


def test_pool(shared_data):
    records = list(read_records(shared_data("gsm8k_best_of_4.json")))
    assert len(records) == 1319 * 4
    assert len({r.extra["question_id"] for r in records}) == 1319
    policies = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
    assert Counter(r.extra["policy"] for r in records) == dict.fromkeys(policies, 1319)
    assert records[5].id == "gsm8k_best_of_4:2/2"
    assert records[5].extra["answer"] == "3"
    assert all(r.labels is None for r in records)
    assert sum("A:" in r.steps[-1] for r in records) == 1319 * 4 - 11


def test_processbench(shared_data):
    path = shared_data("processbench_gsm8k.json")
    records = {record.id: record for record in read_records(path)}
    raws = json.loads(path.read_text())
    assert len(records) == len(raws) == 400
    for raw in raws:
        labels = records[raw["id"]].labels
        assert (labels.index(0.0) if 0.0 in labels else -1) == raw["label"]
        assert labels.count(None) == (len(raw["steps"]) - raw["label"] - 1 if raw["label"] >= 0 else 0)
    assert set(records["gsm8k-0"].extra) == {"generator", "final_answer_correct"}


def test_math_shepherd(shared_data):
    records = list(read_records(shared_data("math_shepherd_sample.jsonl")))
    assert [len(record.steps) for record in records] == [5, 3, 2, 5, 5, 2, 3]
    assert records[0].labels == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert records[0].prompt.endswith("than clarinet lessons in a year?")
    assert records[0].steps[4].startswith("Step 5: She spends 260 * 52")
    assert records[0].steps[4].endswith("The answer is: 13520")
    assert records[0].id == "math_shepherd_sample:1"


def test_prm800k(shared_data):
    records = list(read_records(shared_data("prm800k_sample.jsonl")))
    # path + rated alternatives of each of the 6 records, counted by hand; the second ends unchosen
    assert Counter(r.id.split("/")[0].split(":")[1] for r in records) == {
        "1": 1 + 9,
        "2": 4,
        "3": 1 + 4,  # two of its six alternatives are listed twice
        "4": 1 + 6,
        "5": 1 + 6,
        "6": 1,
    }
    assert records[0].labels == [1.0, None, 1.0, 1.0, 1.0, 1.0]
    assert records[0].steps[1] == "We have $3p+e=1.24$ and $5p+e=1.82$."
    assert [r.labels for r in records[1:6]] == [[None, 0.0]] * 5
    assert records[6].labels == [None] * 5 + [1.0]  # its last step is rated neutral
    assert records[0].extra["answer"] == "29"
    labels = [label for record in records for label in record.labels if label is not None]
    assert (len(labels), labels.count(0.0)) == (71, 15)


def test_every_example_in_the_documentation_has_its_format(write):
    text = (Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    examples = re.findall(r"^### `([a-z0-9-]+)`\n.*?```json\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert {name for name, _ in examples} == set(FORMATS)
    for name, lines in examples:
        assert {recognise(json.loads(line)) for line in lines.splitlines()} == {name}
        assert len(list(read_records(write(lines.encode(), f"{name}.jsonl")))) >= 2


# What cannot be read


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"no JSON", ": not JSON (Expecting value, column 1); write one JSON object per line"),
        (b'{"prompt": "q', ": not JSON (Unterminated string"),
        (b"[1, 2]", ": [1, 2] is not a JSON object"),
        (b"7", ": 7 is not a JSON object"),
        (b"[" * 100000, ": not JSON ("),
        (b'{"id": "x", "prompt": "q", "completions": []}', " (record x): there are no steps"),
        (b'{"id": 3, "prompt": "q", "completions": ["s"], "labels": [2]}', " (record 3): label 1 is 2; give"),
        (b'{"prompt": "q", "completions": ["s"], "labels": [NaN]}', ": label 1 is nan; give"),
        (b'{"id": [], "prompt": "q", "completions": ["s"]}', ": id is []; it must be"),
        (
            b'{"question": "q", "process": "s"}',
            ": its fields (question, process) do not fit trl (prompt, completions or steps), which is the",
        ),
        (b'{"id": "a", "prompt": "q", "completions": ["s"]}', " (record a): the id a is taken by F, line 1"),
    ],
)
def test_bad_line(write, line, expected):
    path = write(json_lines(RAWS[:1]) + b"\n" + line + b"\n" + json_lines(RAWS[1:]))
    message = f"{path}, line 3{expected}".replace(" F,", f" {path},")
    with pytest.raises(BadRecord) as caught:
        list(read_records(path))
    assert str(caught.value).startswith(message)
    assert (caught.value.path, caught.value.line) == (str(path), 3)

    skipped = SkipSummary()
    records = list(read_records(path, options=SKIP, skipped=skipped))
    assert [r.id for r in records] == ["a", "f:4"]
    assert skipped.counts == {caught.value.kind: 1}
    assert skipped.examples == [str(caught.value)]
    assert str(skipped) == f"skipped 1 bad record (1 {caught.value.kind}), for example: {caught.value}"


@pytest.mark.parametrize("first", [b"nothing", b'{"prompt": "q",', b'{"q": 1}'])
def test_bad_first_line_can_be_skipped(write, first):
    skipped = SkipSummary()
    records = list(read_records(write(first + b"\n" + json_lines(RAWS[1:])), options=SKIP, skipped=skipped))
    assert [r.id for r in records] == ["f:2"]
    assert skipped.total == 1


def test_records_of_a_list_are_numbered(write):
    path = write(json.dumps([RAWS[0], 5]).encode(), "f.json")
    assert refused(path, ReadOptions()) == f"{path}, record 2: 5 is not a JSON object; give one object per record"


def test_many_bad_records_in_one_paragraph(write):
    lines = [RAWS[1], *[RAWS[1] | {"completions": []}] * 1200, RAWS[1] | {"prompt": ""}]
    path = write(lines)
    with pytest.warns(UserWarning, match=r"skipped 1,201 bad records \(1,200 no steps, 1 empty question\)"):
        assert len(list(read_records(path, options=SKIP))) == 1
    skipped = SkipSummary()
    assert str(skipped) == "no bad records"
    list(read_records(path, options=SKIP, skipped=skipped))
    assert str(skipped).count("\n") == 0
    assert [example.split(":")[0] for example in skipped.examples] == [f"{path}, line {n}" for n in (2, 3, 4)]


def test_no_usable_record(write):
    assert "no usable record: it is empty" in refused(write(b""))
    assert "no usable record: it is empty" in refused(write(b" \n\n", "g.jsonl"))
    assert "no usable record: it is empty" in refused(write(b"[]", "g.json"))
    path = write([{"q": 1}, {"a": 2}], "h.jsonl")
    message = refused(path)
    assert f"no usable record: all are bad, the first: {path}, line 1: fields q are of no known format" in message


def test_format_override(write):
    both = {"prompt": "p", "completions": ["c"], "question": "q", "process": "s ки"}
    path = write([both])
    assert next(read_records(path)).prompt == "p"
    assert next(read_records(path, "openr")).prompt == "q"
    assert next(read_records(path, options=ReadOptions(format="openr"))).prompt == "q"
    assert "line 1: field responses is missing (fields found: prompt, " in refused(path, ReadOptions(), format="pool")
    with pytest.raises(PQMError, match="format is 'csv'; choose one of auto, trl"):
        read_records(path, "csv")


def test_unreadable_files(write, tmp_path):
    assert "no file or folder of this name" in refused(tmp_path / "missing.jsonl")
    assert "is a file, which has no splits" in refused(f"{write(RAWS)}:train")
    latin = write(json_lines(RAWS[:1]) + "{'prompt': 'é'}".encode("latin-1"), "latin.jsonl")
    assert "latin.jsonl, line 2: byte 13 (0xe9) is not UTF-8; convert" in refused(latin)
    assert "line 1: byte 1 (0xff) is not UTF-8" in refused(write("{}".encode("utf-16"), "utf16.jsonl"))
    cut = write(gzip.compress(json_lines(RAWS * 50))[:-20], "cut.jsonl.gz")
    assert "cannot be read (Compressed file ended" in refused(cut)
    damaged = write(b"\x1f\x8b\x08\x00" + b"\x00" * 6 + b"\xff" * 40, "damaged.gz")
    assert "cannot be read (" in refused(damaged)
    assert "damaged Parquet file" in refused(write(b"PAR1" + b"x" * 50, "x.parquet"))
    open_list = write(b"\n[" + json_lines(RAWS[:1]) + b",\n", "list.json")
    assert f"{open_list}, line 4: damaged JSON list" in refused(open_list)
    (tmp_path / "empty").mkdir()
    assert "holds no data files" in refused(tmp_path / "empty")


PACKED = "compressed with {}; unpack it first"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a Git LFS pointer, not the data; fetch the data with `git lfs pull`",
        ),
        (BOM + b"version https://git-lfs.github.com/spec/v1\r\noid", "is a Git LFS pointer"),
        (b"version https://hawser.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (
            b"/annex/objects/SHA256E-s9--0.jsonl\n",
            "is a git-annex pointer, not the data; fetch the data with `git annex",
        ),
        (b"../.git/annex/objects/a/b/SHA256E-s9--0/SHA256E-s9--0", "is a git-annex pointer"),
        (b"\n <!DOCTYPE html><html>", "is a web page (HTML or XML), perhaps an error or login page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (zipped(), "is a zip archive; unpack it first"),
        (tarred(), "is a tar archive"),
        # named: gzip writes the time, and every worker of pytest-xdist must collect the same names
        pytest.param(gzip.compress(tarred()), "is a tar archive", id="tar in gzip"),
        pytest.param(gzip.compress(gzip.compress(b"{}")), PACKED.format("gzip twice"), id="gzip twice"),
        (bz2.compress(b"{}"), PACKED.format("bzip2")),
        (lzma.compress(b"{}"), PACKED.format("xz")),
        (b"\x28\xb5\x2f\xfd\x24\x00\x01", PACKED.format("zstd")),
        (b"ARROW1\x00\x00", "is an Arrow file"),
    ],
)
def test_what_is_no_data_is_called_by_its_name(write, content, expected):
    for name in ("f.jsonl", "f.parquet"):
        assert expected in refused(write(content, name))


@pytest.mark.parametrize("name", ["f.csv", "f.CSV.gz", "f.tsv"])
def test_tables_are_called_by_their_name(write, name):
    assert refused(write(b"prompt,labels\nq,1\n", name)).endswith("convert it to JSON lines or Parquet")
    assert list(read_records(write(json_lines(RAWS[:1]), name))) == RECORDS[:1]  # the content decides


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": "\ud800"}, "prompt"),
        ({"completions": ["a", "b \udfff"]}, "completions, entry 2"),
        ({"note": {"deep": [1, {"x": "\udc80"}]}}, "note, deep, entry 2, x"),
        ({"note": {"\ud800": 1}}, "note, the field name '\\ud800'"),
        ({"answer": ["\ud800\ud800"]}, "answer, entry 1"),
    ],
)
def test_half_a_surrogate_pair_is_refused_in_every_field(write, change, field):
    broken = json.dumps(RAWS[1] | {"id": "b"} | change).encode() + b"\n"
    path = write(json_lines(RAWS[:1]) + broken + json_lines(RAWS[1:]))
    with pytest.raises(BadRecord) as caught:
        list(read_records(path))
    assert str(caught.value) == f"{path}, line 2 (record b): {field} holds half a surrogate pair; repair its encoding"
    assert caught.value.kind == "broken text"
    skipped = SkipSummary()
    assert len(list(read_records(path, options=SKIP, skipped=skipped))) == 2
    assert skipped.counts == {"broken text": 1}


def test_half_a_surrogate_pair_in_an_id(write):
    path = write(rb'{"id": "\ud800", "prompt": "q", "completions": ["s"]}')
    assert "line 1: id is '\\ud800', with half a surrogate pair" in refused(path, ReadOptions())


def test_deep_nesting_is_a_bad_record(write):
    deep = b'{"prompt": "q", "completions": ["s"], "x": ' + b"[" * 400 + b"]" * 400 + b"}\n"
    skipped = SkipSummary()
    assert len(list(read_records(write(deep + json_lines(RAWS)), options=SKIP, skipped=skipped))) == 2
    assert skipped.counts == {"nested too deeply": 1}


def test_parquet_that_is_not_utf8(tmp_path):
    """One bad row among good ones: only it is bad, in text, in lists of texts and in bytes that hold text."""
    path = tmp_path / "f.parquet"
    prompts = pyarrow.array([b"q1", b"q\xff", b"q3", b"q4"])
    steps = pyarrow.array([[b"a"], [b"b"], [b"c", b"\xe9"], [b"d"]])
    columns = {"prompt": prompts.view(pyarrow.string()), "completions": steps.view(pyarrow.list_(pyarrow.string()))}
    columns["when"] = pyarrow.array([datetime(2024, 5, 6), None, None, None])
    columns["raw"] = pyarrow.array([b"text", b"x", b"y", b"\xff"])
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(BadRecord, match=r"f\.parquet, record 2: field prompt holds bytes that are not UTF-8"):
        list(read_records(path))
    skipped = SkipSummary()
    (record,) = read_records(path, options=SKIP, skipped=skipped)
    assert (record.id, record.extra) == ("f:1", {"when": "2024-05-06T00:00:00", "raw": "text"})
    assert skipped.counts == {"broken text": 3}
    assert "record 3: field completions holds bytes" in skipped.examples[1]
    assert "record 4: field raw holds bytes" in skipped.examples[2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_permission(write):
    path = write(RAWS)
    path.chmod(0)
    assert "cannot be read (Permission denied)" in refused(path)


# Several files


def test_read_all(write):
    paths = [write(RAWS, "f.jsonl"), write([RAWS[1], {}], "g.jsonl")]
    skipped = SkipSummary()
    assert [r.id for r in read_all(paths, SKIP, skipped)] == ["a", "f:2", "g:1"]
    assert skipped.counts == {"another format": 1}


def test_formats_may_differ_between_files(write):
    paths = [write(RAWS), write([{"question": "q", "process": "s ки"}], "g.jsonl")]
    assert [r.prompt for r in read_all(paths)] == ["1+1?", "2+2?", "q"]


def test_ids_are_unique_over_files(write):
    one, two = write(RAWS, "x/f.jsonl"), write(RAWS[1:] + RAWS[:1], "y/g.jsonl")
    with pytest.raises(BadRecord) as caught:
        list(read_all([one, two]))
    expected = f"{two}, line 2 (record a): the id a is taken by {one}, line 1; give each record its own"
    assert str(caught.value) == expected


def test_files_of_one_name_in_two_folders(write):
    one, two = write(RAWS[1:], "x/f.jsonl"), write(RAWS[1:], "y/f.jsonl")
    assert [r.id for r in read_all([one, two])] == ["f:1", f"{two}:1"]


def test_every_file_needs_a_usable_record(write):
    with pytest.raises(PQMError, match=r"g\.jsonl: no usable record"):
        list(read_all([write(RAWS), write([{}], "g.jsonl")], SKIP))


# Properties


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1).filter(str.strip),
            st.lists(
                st.tuples(
                    st.text(min_size=1).filter(str.strip) | st.sampled_from(["a\u2028b", "\x85c", "d\x1ee", "f\rg"]),
                    st.none() | st.floats(0, 1),
                ),
                min_size=1,
            ),
        ),
        min_size=1,
    ),
    st.booleans(),
)
def test_round_trip(trajectories, escape):
    records = []
    for number, (prompt, steps) in enumerate(trajectories):
        labels = [label for _, label in steps]
        known = labels if any(label is not None for label in labels) else None
        records.append(Record(f"r{number}", prompt, [step for step, _ in steps], known, {"scores": [0.5]}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.jsonl"
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for r in records:
                raw = {"id": r.id, "prompt": r.prompt, "completions": r.steps, "labels": r.labels, **r.extra}
                file.write(json.dumps(raw, ensure_ascii=escape) + "\n")
        assert list(read_records(path)) == records


def test_importing_needs_no_heavy_package():
    heavy = "{'torch', 'datasets', 'pyarrow', 'transformers'}"
    code = f"import sys, pqm_fast.data; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
