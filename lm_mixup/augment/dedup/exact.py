"""Exact duplicates: rows whose key an earlier row has, found without holding the corpus in one process.

Keys are 128-bit hashes. They are split into buckets by their first bits, with one Ray task per bucket, so a
task holds `rows / buckets` keys of 24 bytes; the driver holds only the places of duplicates, 8 bytes each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.uint64]
Finder = Callable[[Places], Places]

_NOTHING: Final = np.zeros(0, np.uint64)
_ROW_BITS = np.uint64(36)


def encode_places(unit: int, rows: npt.NDArray[np.integer]) -> Places:
    """The places of rows of a unit as sortable numbers: unit first, then row (below 2^36)."""
    return (np.uint64(unit) << _ROW_BITS) | rows.astype(np.uint64)


def decode_places(places: Places) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The inverse of `encode_places`: unit numbers and row numbers."""
    rows = places & ((np.uint64(1) << _ROW_BITS) - np.uint64(1))
    return (places >> _ROW_BITS).astype(np.int64), rows.astype(np.int64)


def by_unit(places: Places) -> dict[int, npt.NDArray[np.int64]]:
    """Row numbers by unit; the places must be sorted."""
    units, rows = decode_places(places)
    numbers, starts = np.unique(units, return_index=True)
    return dict(zip(numbers.tolist(), np.split(rows, starts[1:]), strict=True)) if len(units) else {}


def keys_of(digests: Sequence[bytes]) -> Keys:
    """128-bit digests as [N, 2] unsigned integers."""
    return np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def split_by_bucket(keys: Keys, places: Places, buckets: int) -> list[npt.NDArray[np.uint64]]:
    """Keys and places as [n, 3] rows, by bucket; equal keys share a bucket."""
    table = np.column_stack([keys, places])
    bucket = (keys[:, 0] % np.uint64(buckets)).astype(np.int64)
    return [table[bucket == index] for index in range(buckets)]


def repeated_places(tables: Sequence[npt.NDArray[np.uint64]], left_out: Places = _NOTHING) -> Places:
    """The places of rows whose key an earlier place holds too, sorted: all but the first of each key.

    Args:
        tables: [n, 3] each: two halves of the key, and the place.
        left_out: Places that are not counted as holding their key; they can still repeat that of another.
    """
    table = np.concatenate([np.zeros((0, 3), np.uint64), *tables])
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    first = np.concatenate([[True], (table[1:, :2] != table[:-1, :2]).any(axis=1)])[: len(table)]
    held = np.concatenate([[0], np.cumsum(~np.isin(table[:, 2], left_out))])[:-1]
    before = held - np.maximum.accumulate(np.where(first, held, 0))  # earlier places that hold the key
    return np.sort(table[before > 0, 2])


def find_duplicates(same_content: Finder, same_id: Finder) -> tuple[Places, Places]:
    """Finds the rows rejected for their content or their id, as one pass over the pool in order would.

    A row is rejected for its content if a kept row before it has the same content, otherwise for its id if a
    kept row before it has the same id. A rejected row never causes the rejection of another one: where the
    first row with some content is rejected for its id, the next row with that content is kept in its place.

    Contents and ids are in different tables, so the search runs in rounds. In each round the first row of
    each content survives, except rows whose id is taken; an id is taken for all rows after its first
    survivor. A taken id stays taken, since its survivor can only be replaced by an earlier row with that id.
    When no survivor has a taken id, the survivors are the rows that one pass in order would keep. Pools with
    distinct ids need one round, others as many as the longest chain of replacements.

    Args:
        same_content: `repeated_places` of the contents, given the places that do not count.
        same_id: `repeated_places` of the ids, given the places that do not count.

    Returns:
        The places of either kind, sorted; no place is in both.
    """
    taken = _NOTHING
    while True:
        duplicates = same_content(taken)
        fallen = np.union1d(duplicates, taken)
        found = same_id(fallen)
        if np.isin(found, fallen).all():
            return duplicates, np.setdiff1d(taken, duplicates)
        taken = np.union1d(taken, found)
