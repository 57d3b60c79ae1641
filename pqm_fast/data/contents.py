"""Recognises files that are not data by their first bytes (text tables: by their name), and says what they are."""

import re
from pathlib import Path

from pqm_fast.errors import PQMError

_UNPACK = "unpack it first (of compressed files, only gzip is read directly)"
_CONVERT = "convert it to JSON lines or Parquet"
_KINDS: dict[bytes, tuple[str, str]] = {
    b"PK\x03\x04": ("a zip archive", _UNPACK),
    b"PK\x05\x06": ("an empty zip archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", _UNPACK),
    b"\xfd7zXZ\x00": ("compressed with xz", _UNPACK),
    b"BZh": ("compressed with bzip2", _UNPACK),
    b"\x04\x22\x4d\x18": ("compressed with lz4", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!\x1a\x07": ("a rar archive", _UNPACK),
    b"\x1f\x8b": ("compressed with gzip twice", _UNPACK),
    b"ARROW1": ("an Arrow file", f"name the folder that `datasets` saved, or {_CONVERT}"),
    b"SQLite format 3\x00": ("an SQLite database", _CONVERT),
    b"\x93NUMPY": ("a NumPy array", _CONVERT),
    b"\x89HDF\r\n": ("an HDF5 file", _CONVERT),
    b"%PDF-": ("a PDF document", _CONVERT),
}
_POINTERS: dict[str, tuple[re.Pattern[bytes], str]] = {
    "Git LFS": (
        re.compile(rb"version https?://(git-lfs\.github\.com/spec|hawser\.github\.com/spec|git-media\.io)/"),
        "git lfs pull",
    ),
    "git-annex": (re.compile(rb"([./]*\.git)?/annex/objects/"), "git annex get"),
}
_TABLES = {".csv": "a CSV table", ".tsv": "a table of tab-separated values"}
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error>")


def check_contents(path: Path, head: bytes) -> None:
    """Raises `PQMError` for a file that is not data. `head` is its first 512 bytes, decompressed if it is gzipped."""
    for magic, (kind, remedy) in _KINDS.items():
        if head.startswith(magic):
            raise PQMError(f"{path}: is {kind}; {remedy}")
    if head[257:262] == b"ustar":
        raise PQMError(f"{path}: is a tar archive; {_UNPACK}")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for name, (pattern, command) in _POINTERS.items():
        if pattern.match(text):
            raise PQMError(f"{path}: is a {name} pointer, not the data; fetch the data with `{command}`")
    table = next((_TABLES[suffix.lower()] for suffix in path.suffixes[-2:] if suffix.lower() in _TABLES), None)
    if table and text and not text.startswith((b"{", b"[", b"PAR1")):
        raise PQMError(f"{path}: is {table}; {_CONVERT}")
    if text.lower().startswith(_PAGES):
        page = "a web page (HTML or XML), perhaps an error or login page that was saved in place of the data"
        raise PQMError(f"{path}: is {page}; open it to see what it says, and fetch the data again")
