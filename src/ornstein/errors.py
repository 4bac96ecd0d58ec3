"""Errors that are the user's to mend: one line that says what was wrong and what to do, never a traceback."""


class UserError(Exception):
    """The input was wrong (a path, an option, a file). The command line prints it and exits with code 2."""

    exit_code = 2


class RunError(Exception):
    """The run itself failed (a NaN loss, a full disk). The command line prints it and exits with code 1."""

    exit_code = 1
