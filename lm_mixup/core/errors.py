"""The error that the user can correct."""


class InputError(Exception):
    """Bad configuration or input: one clear line that says what, where and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """
