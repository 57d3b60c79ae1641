"""Data: records, their formats and files, encoding and packing."""

from pqm_fast.data.read import read_records
from pqm_fast.data.records import Record

__all__ = ["Record", "read_records"]
