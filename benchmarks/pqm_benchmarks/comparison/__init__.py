"""Timing several ways to do one thing: options, rounds, stored results, their table and their picture."""
