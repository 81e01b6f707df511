"""Results of the stages of `evaluate` as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ResultTable:
    """A table: its caption, its headings, its lines (a name, then values)."""

    title: str
    heads: tuple[str, ...]
    lines: list[tuple[Any, ...]]


def csv_table(title: str, text: str) -> ResultTable:
    """A CSV text with a heading as a table."""
    heads, *lines = csv.reader(io.StringIO(text))
    return ResultTable(title, tuple(heads), [tuple(line) for line in lines])


def rows_table(title: str, rows: Sequence[Mapping[str, Any]]) -> ResultTable:
    """Rows with the same keys as a table, numbers to three places."""
    heads = tuple(rows[0]) if rows else ()
    lines = [tuple(_shown(row[head]) for head in heads) for row in rows]
    return ResultTable(title, heads, lines)


def _shown(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
