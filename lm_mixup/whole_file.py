"""Small local files that a kill cannot leave half written; `runs.RunDir` does the same at any URI."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there with all its text or not at all, wherever the process is killed."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
