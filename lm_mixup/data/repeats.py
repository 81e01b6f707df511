"""Which rows repeat a key that an earlier row holds: exact duplicates, with no process holding the corpus.

Keys are 128-bit hashes. They are dealt into buckets by their first bits, a Ray task a bucket, so a task holds
`rows / buckets` keys of 24 bytes; the driver holds the places of the repeats alone, 8 bytes each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.uint64]

_ROW_BITS = np.uint64(36)


def place(unit: int, rows: npt.NDArray[np.integer]) -> Places:
    """The places of rows of a unit as sortable numbers: unit first, then row (below 2^36)."""
    return (np.uint64(unit) << _ROW_BITS) | rows.astype(np.uint64)


def split_places(places: Places) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The inverse of `place`: unit numbers and row numbers."""
    rows = places & ((np.uint64(1) << _ROW_BITS) - np.uint64(1))
    return (places >> _ROW_BITS).astype(np.int64), rows.astype(np.int64)


def by_unit(places: Places) -> dict[int, npt.NDArray[np.int64]]:
    """Row numbers by unit; the places must be sorted."""
    units, rows = split_places(places)
    numbers, starts = np.unique(units, return_index=True)
    return dict(zip(numbers.tolist(), np.split(rows, starts[1:]), strict=True)) if len(units) else {}


def keys_of(digests: Sequence[bytes]) -> Keys:
    """128-bit digests as [N, 2] unsigned integers."""
    return np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def deal(keys: Keys, places: Places, buckets: int) -> list[npt.NDArray[np.uint64]]:
    """Keys and places as [n, 3] rows, by bucket; equal keys share a bucket."""
    table = np.column_stack([keys, places])
    bucket = (keys[:, 0] % np.uint64(buckets)).astype(np.int64)
    return [table[bucket == index] for index in range(buckets)]


def repeats(tables: Sequence[npt.NDArray[np.uint64]]) -> Places:
    """The places of rows whose key an earlier place holds too, sorted: all but the first of each key.

    Args:
        tables: [n, 3] each: two halves of the key, and the place.
    """
    table = np.concatenate([np.zeros((0, 3), np.uint64), *tables])
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    again = (table[1:, :2] == table[:-1, :2]).all(axis=1)
    return np.sort(table[1:, 2][again])
