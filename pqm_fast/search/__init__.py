"""Guided search: a policy writes steps, and a process reward model chooses which partial solutions it continues.

`solution` is a partial or whole solution, `tree` the choice among them, `methods` beam search, DVTS and plain samples
of one question, `rounds` their requests and scores, for many questions at once, and `run` the command.
"""
