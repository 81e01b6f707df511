"""The one error that is the user's to mend."""


class InputError(Exception):
    """Bad configuration or input: one clear line that says what, where and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """
