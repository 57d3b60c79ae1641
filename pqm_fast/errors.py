"""The one exception for mistakes a user can mend: the command line prints its text and exits with code 1."""


class PQMError(Exception):
    """Something in the input is wrong. The message names the file or record, what was found and what to do."""
