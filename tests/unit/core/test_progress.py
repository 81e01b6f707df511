"""Progress in a log: how far, how much time is left, and what is said beside it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lm_mixup.core import progress


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is printed, without its indent; the clock stands until it is moved."""
    said: list[str] = []
    monkeypatch.setattr(progress, "say", lambda message: said.append(message.strip()))
    return said


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds)


def test_a_line_every_quarter_of_a_minute_with_the_time_left(monkeypatch, lines):
    set_clock(monkeypatch, 100.0)
    with progress.track("embed", total=10, completed=2) as advance:
        set_clock(monkeypatch, 110.0)
        advance(1, "40 rows")
        set_clock(monkeypatch, 120.0)
        advance(1, "80 rows")  # 2 of 8 in 20 s: 60 s for the other 6
        set_clock(monkeypatch, 130.0)
        advance(6, "320 rows")
    assert lines == ["embed: 4/10 0:01:00 left, 80 rows", "embed: 10/10 320 rows"]


def test_without_a_note_nothing_trails(monkeypatch, lines):
    set_clock(monkeypatch, 0.0)
    with progress.track("select", total=2) as advance:
        set_clock(monkeypatch, 3600.0)
        advance()
        advance()
    assert lines == ["select: 1/2 1:00:00 left", "select: 2/2"]


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/[/]run", "[bold red]x[/bold red]", "runs/[link=http://example.invalid]a", ":smile: [/"],
)
def test_what_is_said_is_shown_as_it_is(monkeypatch, text):
    shown = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=shown, width=40, force_terminal=False))
    progress.say(f": moved to {text}", lead="[note]", style="bold yellow")
    assert shown.getvalue() == f"[note]: moved to {text}\n"
