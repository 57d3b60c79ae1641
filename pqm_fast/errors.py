"""Errors that a user can fix. The command line prints their message and exits with code 1."""


class PQMError(Exception):
    """The input is wrong. The message names the file or record, what was found, and what to do."""


class RecordError(PQMError):
    """One record cannot be used. `kind` groups these errors when they are counted (`skip_bad`)."""

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


class Diverged(PQMError):
    """A loss, a gradient, a weight or a Q-value is not finite."""
