"""The processes that a test, or a command it has started, has under it."""

from __future__ import annotations

import contextlib

import psutil


def children_like(name: str, of: int | None = None) -> list[psutil.Process]:
    """The processes below this one, or below process `of`, whose command line holds a name."""
    found = []
    for child in psutil.Process(of).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ended meanwhile
            if name in " ".join(child.cmdline()):
                found.append(child)
    return found
