"""Counts of the values of a data set by split: counted per part, summed, and shown as tables.

The counts are flat metrics, so that they pass through the receipts of a stage into its manifest:
`rows/<split>/<column>/<value>`, and `rows/<split>` for all rows of a split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

_PREFIX: Final = "rows/"
NOT_STATED: Final = "not stated"
_SPLITS: Final = ("sft", "grpo", "dev", "test")  # in the order in which they are used
_WHOLE: Final = "train"
_STORED: Final = ("task_type", "method", "origin", "score", "noisy")
# The labels of the columns, in the order of the tables.
_LABELS: Final = {
    "task_type": "task type",
    "method": "method",
    "origin": "origin",
    "inputs": "inputs",
    "score": "score",
    "noisy": "noisy",
    "reasoning": "reasoning",
}


def count_values(rows: pa.Table) -> Counter[str]:
    """Counts the rows of a table by split and value.

    Args:
        rows: Rows of MIXTURE or of a training set. Columns counted, where they are there: task type, method,
            origin, score, noise, the number of `inputs`, and whether there is reasoning in `cot`. Without a
            column `split` all rows are of the split `train`.

    Returns:
        Counts that can be added to those of other tables.
    """
    splits = rows["split"] if "split" in rows.schema.names else pa.repeat(_WHOLE, rows.num_rows)
    counts: Counter[str] = Counter()
    for split, number in _occurrences(splits):
        counts[f"{_PREFIX}{split}"] = number
        chosen = rows.filter(pc.equal(splits, split))
        for column, values in _columns(chosen).items():
            for value, count in _occurrences(values):
                counts[f"{_PREFIX}{split}/{column}/{_label_of(value)}"] = count
    return counts


def splits_in(figures: Mapping[str, Any]) -> dict[str, int]:
    """The number of rows of each split, in the order in which splits are used."""
    found = {key.removeprefix(_PREFIX): int(n) for key, n in figures.items() if key.startswith(_PREFIX)}
    return {split: found[split] for split in sorted(found, key=_split_order) if "/" not in split}


def tables_of(figures: Mapping[str, Any]) -> dict[str, list[tuple[str, list[int]]]]:
    """The counts as tables.

    Args:
        figures: The result of `count_values`, possibly among other metrics.

    Returns:
        For each column label the lines of its table: a value, and its count in each of the splits of
        `splits_in`. Columns without any value are omitted.
    """
    splits = list(splits_in(figures))
    found: dict[str, dict[str, Counter[str]]] = {column: {} for column in _LABELS}
    for key, count in figures.items():
        if key.startswith(_PREFIX) and key.count("/") >= 3:
            split, column, value = key.removeprefix(_PREFIX).split("/", 2)
            found[column].setdefault(value, Counter())[split] += int(count)
    return {
        _LABELS[column]: [
            (value, [lines[value][split] for split in splits]) for value in sorted(lines, key=_value_order)
        ]
        for column, lines in found.items()
        if set(lines) - {NOT_STATED}
    }


def without_value_counts(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that are not value counts."""
    return {key: value for key, value in figures.items() if not key.startswith(_PREFIX)}


def _columns(rows: pa.Table) -> dict[str, Any]:
    columns = {name: rows[name] for name in _STORED if name in rows.schema.names}
    if "inputs" in rows.schema.names:
        columns["inputs"] = pc.list_value_length(rows["inputs"])
    if "cot" in rows.schema.names:
        columns["reasoning"] = pc.fill_null(pc.not_equal(rows["cot"], ""), False)
    return columns


def _occurrences(values: Any) -> list[tuple[Any, int]]:
    return [(entry["values"], entry["counts"]) for entry in pc.value_counts(values).to_pylist()]


def _label_of(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NOT_STATED if value is None else str(value)


def _split_order(split: str) -> tuple[int, str]:
    return (_SPLITS.index(split) if split in _SPLITS else len(_SPLITS), split)


def _value_order(value: str) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    return (0, float(value), "") if re.fullmatch(r"-?\d+", value) else (1, 0.0, value)
