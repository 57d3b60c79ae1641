"""Damage to a file: the least there is."""

from pathlib import Path


def flip(file: Path, place: float = 0.5) -> None:
    """One bit, in the byte that is at `place`, from 0.0 (the first) to 1.0 (the last)."""
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    file.write_bytes(data)
