"""The errors that end a run in one line."""


class InputError(Exception):
    """Bad configuration or input: one clear line that says what, where and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class StageEmpty(RuntimeError):
    """A stage came to its end with nothing to work on: not a row, or a model that learned nothing."""
