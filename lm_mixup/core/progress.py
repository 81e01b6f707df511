"""Progress bars on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True)
"""Progress and logs; results go to stdout."""
_LOG_EVERY_S = 15.0
_run_log = logging.getLogger("lm_mixup.run")  # silent until `run_log.open_log`
_run_log.addHandler(logging.NullHandler())
_run_log.propagate = False


def say(message: str, *, lead: str = "", style: str = "bold red") -> None:
    """Prints one line to stderr, and into the run's log where there is one.

    The text is shown as it is: brackets in a path or in somebody's row are no markup.

    Args:
        message: The line.
        lead: Its beginning, in the style.
        style: A style of Rich.
    """
    _run_log.info("%s", f"{lead}{message}".strip())
    line = Text.assemble((lead, style), message)
    console.print(line, highlight=False, soft_wrap=True)  # logs need the message on one line


@contextmanager
def track(label: str, total: int, completed: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar.

    Yields:
        `advance(steps, note="")`: moves the bar; the note is shown behind it (a loss, a reward).
    """
    if sys.stderr.isatty():
        with _bar(label, total, completed) as advance:
            yield advance
    else:
        yield _log_lines(label, total, completed)


@contextmanager
def _bar(label: str, total: int, completed: int) -> Iterator[Callable[..., None]]:
    columns = (
        TextColumn("  {task.description:<16}", markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, completed=completed, note="")
        yield lambda steps=1, note="": progress.update(task, advance=steps, note=note)


def _log_lines(label: str, total: int, completed: int) -> Callable[..., None]:
    """One log line every 15 seconds, with the time left at the speed so far, and one at the end."""
    started = time.monotonic()
    state = {"done": completed, "last": started}

    def advance(steps: int = 1, note: str = "") -> None:
        state["done"] += steps
        now = time.monotonic()
        if state["done"] >= total or now - state["last"] >= _LOG_EVERY_S:
            state["last"] = now
            per_step = (now - started) / max(1, state["done"] - completed)
            left = timedelta(seconds=round(per_step * (total - state["done"])))
            notes = [f"{left} left"] * (state["done"] < total) + [note] * bool(note)
            say(f"  {label}: {int(state['done'])}/{total} {', '.join(notes)}".rstrip())

    return advance
