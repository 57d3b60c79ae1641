"""Data: records, their formats and files, tokenising, packing into batches, and loading."""

from pqm_fast.data.read import read_records
from pqm_fast.data.records import Record

__all__ = ["Record", "read_records"]
