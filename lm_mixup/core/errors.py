"""The errors that end a run in one line, and what an error says in one line."""

from __future__ import annotations


class InputError(Exception):
    """Bad configuration or input: one clear line that says what, where and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class StageEmpty(RuntimeError):
    """A stage came to its end with nothing to work on: not a row, or a model that learned nothing."""


def input_error_in(error: BaseException | None) -> InputError | None:
    """The InputError behind an exception, also through Ray's wrapping of what was raised in a worker."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None)
        if isinstance(error, InputError) and not isinstance(cause, Exception):
            return error
        error = cause if isinstance(cause, Exception) else error.__cause__
    return None


def reason_of(error: Exception) -> str:
    """In one line what was raised first: Ray wraps it in errors whose text gives hints about Ray alone."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None)
        inner = cause if isinstance(cause, Exception) else error.__cause__
        if not isinstance(inner, Exception):
            break
        error = inner
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
