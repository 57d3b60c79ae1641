"""Shared foundations: files and their checksums, locks, signals, names, options."""
