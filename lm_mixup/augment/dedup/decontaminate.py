"""Rows that contain text of an evaluation set: shared word n-grams (as in Brown et al. 2020, appendix C).

The n-grams of all evaluation items are hashes in sorted arrays: at most 12 bytes a word of the evaluation
sets, held once a node in Ray's object store; while the driver builds them, one file's texts and about three
times as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lm_mixup.augment.dedup.ngrams import Hashes, ngram_hashes
from lm_mixup.augment.reading.files import list_units, read_unit
from lm_mixup.augment.reading.rows import PoolRow, Refused, parse_line
from lm_mixup.config import DecontaminateConfig, EmbedDecontaminateConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.words import words

_QUESTIONS: Final = (
    "question", "prompt", "instruction", "query", "problem", "input",
    "sentence", "statement", "claim", "text",
)  # fmt: skip
_LINE_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class EvalIndex:
    """The n-grams of evaluation items.

    Attributes:
        sizes: For each n: the sorted hashes [G] of the n-grams, and the number [G] of the first item of each.
        ids: The items' ids.
        skipped: Items with too few words to be told apart from ordinary text.
    """

    sizes: Mapping[int, tuple[Hashes, npt.NDArray[np.int32]]]
    ids: Sequence[str]
    skipped: int

    def match(self, row: PoolRow) -> str | None:
        """The id of the first evaluation item that the row holds text of, or None."""
        listed = words(f"{row.prompt} {row.completion}")
        first: int | None = None
        for size, (hashes, items) in self.sizes.items():
            mine = ngram_hashes(listed, size)
            at = np.minimum(np.searchsorted(hashes, mine), len(hashes) - 1)
            hit = items[at[hashes[at] == mine]]
            if len(hit):
                first = int(hit.min()) if first is None else min(first, int(hit.min()))
        return None if first is None else self.ids[first]


def read_eval_index(config: DecontaminateConfig) -> EvalIndex:
    """Reads the evaluation sets.

    Raises:
        InputError: One is missing, damaged, has no column of text that is known, or nothing to compare.
    """
    index = build_index(read_eval_items(config), config)
    if not index.sizes:
        raise InputError(
            f"ingest.decontaminate.files: none of the {len(index.ids)} items has {config.min_words} words; "
            "name their text columns in ingest.decontaminate.columns, or lower ingest.decontaminate.min_words"
        )
    return index


def read_eval_items(
    config: DecontaminateConfig | EmbedDecontaminateConfig, section: str = "ingest.decontaminate"
) -> Iterator[tuple[str, list[str]]]:
    """Id and texts of the items of all evaluation sets, in order; the id is `file:number` where none is.

    Args:
        config: Names the sets, and their columns of text.
        section: What error messages call it.

    Raises:
        InputError: A set is missing, damaged, or has no column of text that is known.
    """
    for pool in config.files:
        units, _ = list_units(pool, _LINE_BYTES, key=f"{section}.files")
        uri, number = "", 0
        for unit in units:
            number = number if unit.uri == uri else 0
            uri = unit.uri
            for raw in read_unit(unit, _LINE_BYTES):
                number += 1
                record = _record(raw, f"{unit.uri}:{number}")
                if record is not None:
                    texts = _texts(record, config.columns, f"{unit.uri}:{number}", section)
                    name = record.get("id")
                    yield f"{unit.uri}:{number}" if name in (None, "") else str(name), texts


def _record(raw: Any, where: str) -> Mapping[str, Any] | None:
    """The item, or None for a blank line."""
    try:
        record = parse_line(raw) if isinstance(raw, bytes) else raw
    except Refused as refusal:
        if refusal.reason == "blank_line":
            return None
        raise InputError(f"evaluation set {where}: {refusal.reason}; repair or remove the line") from None
    if not isinstance(record, Mapping):
        raise InputError(f"evaluation set {where}: not an object; give one item a line")
    return record


def _texts(record: Mapping[str, Any], columns: Sequence[str], where: str, section: str) -> list[str]:
    names = columns or [name for name in _QUESTIONS if isinstance(record.get(name), str)][:1]
    if not columns and "instruction" in names and isinstance(record.get("input"), str):
        return [f"{record['instruction']} {record['input']}"]
    found = [record[name] for name in names if isinstance(record.get(name), str)]
    if not found:
        has = ", ".join(str(name) for name in list(record)[:8])
        raise InputError(
            f"evaluation set {where}: no text in {', '.join(names) or 'a column of a known name'}; name its "
            f"text columns in {section}.columns (it has {has})"
        )
    return found


def build_index(items: Iterable[tuple[str, list[str]]], config: DecontaminateConfig) -> EvalIndex:
    """The index of items given as id and texts."""
    found: dict[int, list[tuple[Hashes, int]]] = {}
    ids: list[str] = []
    skipped = 0
    for number, (name, texts) in enumerate(items):
        ids.append(name)
        listed = [one for one in map(words, texts) if len(one) >= min(config.min_words, config.ngram)]
        skipped += not listed
        for one in listed:
            size = min(config.ngram, len(one))
            found.setdefault(size, []).append((ngram_hashes(one, size), number))
    return EvalIndex({size: _sorted(listed) for size, listed in sorted(found.items())}, ids, skipped)


def _sorted(listed: list[tuple[Hashes, int]]) -> tuple[Hashes, npt.NDArray[np.int32]]:
    """Distinct hashes, and the first item of each; items come in order."""
    hashes = np.concatenate([one for one, _ in listed])
    items = np.repeat([number for _, number in listed], [len(one) for one, _ in listed]).astype(np.int32)
    distinct, first = np.unique(hashes, return_index=True)  # the first occurrence, so the first item
    return distinct, items[first]
