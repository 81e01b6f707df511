"""Results of benchmarks and experiments as tables, whatever they are nested in."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
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


def result_tables(results: Mapping[str, Any]) -> list[ResultTable]:
    """The tables in some result files.

    A mapping of names to mappings of numbers, or a list of mappings, is a table; what lies deeper is looked
    for under its own name. Everything else of a file (settings, versions, samples) is left out.

    Args:
        results: File name → its content.
    """
    return [table for name, content in results.items() for table in _tables(name, content)]


def _tables(title: str, content: Any) -> list[ResultTable]:
    if isinstance(content, list) and content and all(isinstance(line, Mapping) for line in content):
        names = [key for key in content[0] if not isinstance(content[0][key], dict | list)]
        return [ResultTable(title, tuple(names), [tuple(line.get(n) for n in names) for line in content])]
    if not isinstance(content, Mapping):
        return []
    lines = {name: _numbers(values) for name, values in content.items() if isinstance(values, Mapping)}
    lines = {name: numbers for name, numbers in lines.items() if numbers}
    found = []
    if lines:
        heads = tuple(dict.fromkeys(key for numbers in lines.values() for key in numbers))
        body = [(name, *(numbers.get(head) for head in heads)) for name, numbers in lines.items()]
        found.append(ResultTable(title, ("", *heads), body))
    deeper = [(f"{title}: {name}", inner) for name, inner in content.items() if name not in lines]
    return found + [table for name, inner in deeper for table in _tables(name, inner)]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
