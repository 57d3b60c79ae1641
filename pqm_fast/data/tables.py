"""Turns rows of Arrow tables into raw records, with values that JSON could hold."""

from collections.abc import Iterator
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pqm_fast.data.checks import FormatError

if TYPE_CHECKING:
    import pyarrow


def table_rows(table: "pyarrow.Table | pyarrow.RecordBatch") -> Iterator[Any]:
    """The rows in order, each as a dict, or as a `FormatError` if it cannot be read; the others are not affected."""
    try:
        rows = table.to_pylist()
    except (ValueError, OverflowError):  # bytes that are not UTF-8, or a date that Python cannot represent
        rows = [_row(table.slice(number, 1)) for number in range(table.num_rows)]
    for row in rows:
        try:
            yield row if isinstance(row, FormatError) else {key: _plain(value, key) for key, value in row.items()}
        except FormatError as error:
            yield error


def _row(table: "pyarrow.Table | pyarrow.RecordBatch") -> Any:
    row = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        try:
            row[name] = column.to_pylist()[0]
        except UnicodeDecodeError:
            return FormatError("broken text", f"field {name} holds bytes that are not UTF-8; convert it to UTF-8")
        except (ValueError, OverflowError) as error:
            return FormatError("unreadable value", f"field {name} cannot be read ({error}); repair or remove it")
    return row


def _plain(value: Any, name: str) -> Any:
    """`value` as JSON could hold it, so that it can be written back beside the scores. Raises `FormatError`."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, list):
        return [_plain(inner, name) for inner in value]
    if isinstance(value, dict):
        return {key: _plain(inner, name) for key, inner in value.items()}
    if isinstance(value, bytes):  # some programs do not mark text as text
        try:
            return value.decode()
        except UnicodeDecodeError:
            message = f"field {name} holds bytes that are not UTF-8; convert it to UTF-8, or remove it"
            raise FormatError("broken text", message) from None
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return str(value)
