"""Reads raw records and their places from JSON and Parquet files and from saved and hub data sets."""

import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pqm_fast.common.names import redacted
from pqm_fast.data.checks import FormatError
from pqm_fast.data.contents import check_contents
from pqm_fast.data.tables import table_rows
from pqm_fast.errors import PQMError

_DATA_SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".gz")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SAVED = ("state.json", "dataset_dict.json")  # files that `datasets` saves beside its tables


class Place(NamedTuple):
    """Where a raw record is: the number, from 1, of a line in JSON lines, otherwise of a record."""

    source: str
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.source}, {self.unit} {self.number}"


# A record that could not be read is a `FormatError`, so that the reader can continue with the next one.
Raw = tuple[Place, Any]


def expand(names: Iterable[str]) -> list[str]:
    """The sources that the names refer to, in turn: for a folder, its data files sorted by name; for a pattern (`*`,
    `?`, `[...]`, `**`), the files that it matches; otherwise the name itself.

    Raises `PQMError` for a name without files, for data that is named twice, and for a folder that holds files
    other than data: only hidden files, README, licence and `.md` files are left out silently.
    """
    sources_by_split: dict[str, dict[str, str]] = {}  # the resolved path or hub name -> split -> the source
    sources = []
    for source in (source for name in names for source in _expanded(name)):
        base, split = base_and_split(source)
        splits = sources_by_split.setdefault(str(Path(base).resolve()) if Path(base).exists() else base, {})
        # a data set named without a split is its only split
        if earlier_source := splits.get(split) or splits.get("") or (not split and next(iter(splits.values()), None)):
            also = "" if earlier_source == source else f", also as {earlier_source}"
            raise PQMError(f"{source}: is named twice{also}; name it once, or its records count double")
        splits[split] = source
        sources.append(source)
    return sources


def base_and_split(source: str) -> tuple[str, str]:
    """NAME:SPLIT -> (NAME, SPLIT); (`source`, "") if there is no split, or if `source` is the name of a file."""
    base, _, split = source.rpartition(":")
    return (base, split) if base and not Path(source).exists() else (source, "")


def is_hub_name(name: str) -> bool:
    """Whether a source, without its split, is the name of a data set on the hub: it names nothing here."""
    return not Path(name).exists() and bool(_HUB_NAME.fullmatch(name)) and not name.endswith(_DATA_SUFFIXES)


def _expanded(source: str) -> list[str]:
    if is_pattern(source):
        names = sorted(glob.glob(source, recursive=True))
        if not names:
            raise PQMError(f"{redacted(source)}: matches no file; check the pattern")
        # `**` matches a folder and the files in it
        return list({os.path.normpath(file): file for name in names for file in _expanded(name)}.values())
    folder = Path(source)
    if not folder.is_dir() or any((folder / name).exists() for name in _SAVED):
        return [source]
    files = list(_files(folder))
    data = [path for path in files if path.name.endswith(_DATA_SUFFIXES)]
    if not data:
        raise PQMError(f"{source}: holds no data files ({', '.join(_DATA_SUFFIXES)}) and no data set; check the folder")
    # README, licence and .md files describe the data; nothing else is left out
    other_files = [
        p for p in files if p not in data and p.suffix != ".md" and not p.name.startswith(("README", "LICENSE"))
    ]
    if other_files:
        raise PQMError(
            f"{source}: holds {other_files[0].relative_to(folder)}, which is not a data file "
            f"({', '.join(_DATA_SUFFIXES)}); remove it, or name the files to read: {folder / f'*{data[0].suffix}'}"
        )
    return list(map(str, data))


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders, without hidden ones. Raises `PQMError` for what is neither a file nor a
    folder, and for a link to a folder."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise PQMError(f"{folder}: cannot be read ({error.strerror}); check that you may read it") from error
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            kind = (
                "a link to a folder"
                if path.is_dir()
                else "a broken link"
                if path.is_symlink()
                else "neither a file nor a folder"
            )
            raise PQMError(f"{path}: is {kind}; remove it, or name the files to read")


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern for file names. A file may have such a name itself; then it is not a pattern."""
    return glob.has_magic(source) and not Path(source).exists()


def open_source(source: str) -> tuple[str, Iterator[Raw]]:
    """Opens a source that `expand` returned. Returns (the start of the ids of its records, its raw records).

    Raises `PQMError` if there is no such source, and during reading if it is damaged.
    """
    path = Path(source)
    if path.is_file():
        stem = path.name
        while stem.endswith(_DATA_SUFFIXES):
            stem = stem.rpartition(".")[0]
        return stem, _read_file(path)
    if path.is_dir():
        return _open_data_set(source, None)
    if path.is_symlink():
        raise PQMError(f"{redacted(source)}: is a broken link to {os.readlink(path)}; fetch that file")
    name, split = base_and_split(source)
    if name != source and Path(name).is_file():
        raise PQMError(f"{redacted(source)}: {name} is a file, which has no splits; name the file alone")
    if Path(name).is_dir() or is_hub_name(name):
        return _open_data_set(name, None if name == source else split)
    raise PQMError(f"{redacted(source)}: no file or folder of this name; check it (hub data sets are named org/name)")


def _open_data_set(name: str, split: str | None) -> tuple[str, Iterator[Raw]]:
    import datasets

    folder = Path(name)
    # never load_dataset on a folder: it guesses which of the files belong to a split and leaves out the others
    load, subject, hint = datasets.load_dataset, "no such file or folder, and it", "check the name and the network"
    if folder.is_dir():
        load, subject, hint = (
            datasets.load_from_disk,
            "the folder",
            "a folder of data files has no splits: name it, or some of its files, alone",
        )
    try:
        data = load(name)
    except Exception as error:  # the errors that datasets raises have no common class
        reason = f"{type(error).__name__}: {error}"
        raise PQMError(f"{name}: {subject} cannot be loaded as a data set ({reason}); {hint}") from error
    stem = folder.resolve().name
    if isinstance(data, dict):
        if split is None and len(data) == 1:
            (split,) = data
        if split not in data:
            problem = "has several splits" if split is None else f"has no split {split}"
            raise PQMError(f"{name}: {problem}; choose one: {', '.join(f'{name}:{key}' for key in data)}")
        data, stem, name = data[split], f"{stem}:{split}", f"{name}:{split}"
    elif split is not None:
        raise PQMError(f"{name}: has no splits; leave out :{split}")
    # as Arrow tables, whatever format the data set was saved with
    tables = data.with_format("arrow").iter(1024)
    return stem, _numbered(name, "record", chain.from_iterable(map(table_rows, tables)))


def _numbered(source: str, unit: str, values: Iterable[Any]) -> Iterator[Raw]:
    return ((Place(source, unit, number), value) for number, value in enumerate(values, 1))


def _read_file(path: Path) -> Iterator[Raw]:
    """The raw records of a file, whose type is recognised by its first bytes, not by its name."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if gzipped := head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as unpacked:
                head = unpacked.read(512)
        check_contents(path, head)
        yield from _read_parquet(path) if head.startswith(b"PAR1") and not gzipped else _read_json(path, gzipped)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PQMError(f"{path}: cannot be read ({reason}); check that it is whole and that you may read it") from error


def _read_parquet(path: Path) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            yield from _numbered(str(path), "record", chain.from_iterable(map(table_rows, batches)))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise PQMError(f"{path}: damaged Parquet file ({error}); fetch or write it again") from error


def _read_json(path: Path, gzipped: bool) -> Iterator[Raw]:
    """JSON lines; or one JSON value, if the text begins with a list or with an object that does not end on its line."""
    with gzip.open(path) if gzipped else path.open("rb") as file:
        lines = _decoded_lines(path, file)
        first = next(((number, line) for number, line in lines if line.strip()), None)
        if first is None:
            return
        opening = first[1].strip()
        if opening.startswith("[") or (opening.startswith("{") and not opening.endswith("}")):
            all_lines = [first, *lines]
            try:
                value = json.loads("".join(line for _, line in all_lines))
            except (ValueError, RecursionError) as error:
                if opening.startswith("["):
                    number = first[0] + getattr(error, "lineno", 1) - 1
                    reason = getattr(error, "msg", error)
                    message = f"{path}, line {number}: damaged JSON list ({reason}); repair it or write JSON lines"
                    raise PQMError(message) from None
                lines = iter(all_lines[1:])
            else:
                yield from _numbered(str(path), "record", value if isinstance(value, list) else [value])
                return
        for number, line in chain([first], lines):
            if line.strip():
                yield Place(str(path), "line", number), _parse_line(line)


def _decoded_lines(path: Path, file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines. Only a line feed ends a line: U+2028 may occur inside a string."""
    for number, line in enumerate(file, 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise PQMError(
                f"{path}, line {number}: byte {error.start + 1} ({line[error.start]:#04x}) is not UTF-8; "
                "convert the file to UTF-8"
            ) from None


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line.strip())
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        return FormatError("not JSON", f"not JSON ({reason}); write one JSON object per line")
