"""Near-duplicates: MinHash LSH finds candidate pairs, their exact Jaccard similarity decides.

A row is the set of word n-grams of its prompt and of its completion, which are kept distinct. Another answer
to the same long prompt is not a duplicate, so the completions alone must be similar too, at a lower
threshold. Rows whose MinHash signatures agree on a whole band share a key (Broder 1997; Leskovec, Rajaraman
and Ullman, Mining of Massive Datasets, chapter 3), and pairs that share a key are compared set against set,
so no pair below the threshold is ever folded. Going through the rows in the pool's order, a row is folded
into the first kept row that it resembles: every rejected row is within the threshold of the row that is kept
for it, there are no chains.

Bounds, for N rows in units (pieces of the pool) and B bands, 18 with the defaults:

* a task that sketches holds one unit's texts; its sets lie in Ray's object store (which spills to disk) at
  4 bytes an n-gram, 8 bytes and the id a row;
* keys: 16 (B + 1) bytes a row, dealt by key over as many tasks as keep each near 256 MiB;
* a task that compares holds the sets of two units;
* the driver holds 16 bytes a candidate pair, and the id for a rejected row. Of rows that share a key, each is
  compared with the first 32 alone, so candidates are at most 32 (B + 1) N, and in ordinary pools a fraction
  of N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from lm_mixup.augment.dedup.exact import Places, decode_places, encode_places
from lm_mixup.augment.dedup.ngrams import Hashes, mix, ngram_hashes
from lm_mixup.augment.reading.rows import PoolRow
from lm_mixup.config import NearDuplicatesConfig
from lm_mixup.core.words import words_and_symbols

Pairs = npt.NDArray[np.uint64]

KEY_BYTES: Final = 16
_FIRST: Final = 32
_SEED: Final = 1


@dataclass(frozen=True)
class Sketch:
    """The n-gram sets of the rows of one unit.

    Attributes:
        rows: [R] int64, ascending: numbers of the rows in the unit.
        ids: R row ids.
        flat: [total] uint32: the sets, each sorted, one behind the other.
        offsets: [R + 1] int64: where each begins.
    """

    rows: npt.NDArray[np.int64]
    ids: list[str]
    flat: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]

    def set_of(self, row: int) -> npt.NDArray[np.uint32]:
        """The set of the row with this number in the unit."""
        at = int(np.searchsorted(self.rows, row))
        return self.flat[self.offsets[at] : self.offsets[at + 1]]

    def id_of(self, row: int) -> str:
        """The id of the row with this number in the unit."""
        return self.ids[int(np.searchsorted(self.rows, row))]


def bands_of(config: NearDuplicatesConfig) -> tuple[int, int]:
    """Bands, and hash functions a band: the longest bands that keep `recall` at the threshold.

    A pair of similarity s shares a band of r functions with probability s^r, so one of b bands with
    1 - (1 - s^r)^b. Long bands leave fewer pairs to compare.
    """
    for width in range(config.num_perm, 1, -1):
        bands = config.num_perm // width
        if 1 - (1 - config.threshold**width) ** bands >= config.recall:
            return bands, width
    return config.num_perm, 1


def shingles(row: PoolRow, n: int) -> npt.NDArray[np.uint32]:
    """The set of hashed n-grams of a row, sorted: those of the prompt even, those of the completion odd."""
    even = np.uint32(0xFFFFFFFE)
    prompt, completion = _side(row.prompt, n) & even, _side(row.completion, n) | ~even
    return np.unique(np.concatenate([prompt, completion]))


def _side(text: str, n: int) -> npt.NDArray[np.uint32]:
    """The n-grams of a text; all of it as one, where it has fewer words."""
    listed = words_and_symbols(text)
    return ngram_hashes(listed, min(n, len(listed))).astype(np.uint32)


def sketch(
    number: int, rows: Sequence[tuple[int, PoolRow]], config: NearDuplicatesConfig
) -> tuple[Sketch, Pairs]:
    """The sets of a unit's rows, and their keys.

    Returns:
        The sets, and [R × (bands + 1), 2] rows of key and place. The key over the bands is that of the whole
        set, so equal sets always meet.
    """
    sets = [shingles(row, config.ngram) for _, row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in sets])]).astype(np.int64)
    flat = np.concatenate([np.zeros(0, np.uint32), *sets])
    numbers = np.array([index for index, _ in rows], np.int64)
    held = Sketch(numbers, [row.id for _, row in rows], flat, offsets)
    if not rows:
        return held, np.zeros((0, 2), np.uint64)
    keys = np.column_stack([_band_keys(flat, offsets, config), _set_keys(flat, offsets)])
    places = np.repeat(encode_places(number, numbers), keys.shape[1])
    return held, np.column_stack([keys.ravel(), places])


def _band_keys(
    flat: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], config: NearDuplicatesConfig
) -> Hashes:
    """[R, bands] keys: the hash of each band of the signatures, and of the band's number."""
    bands, width = bands_of(config)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        mix(flat.astype(np.uint64)), offsets.astype(np.uint64), bands * width, _SEED
    )
    signatures = np.array(matrix.to_rows(), np.uint64).reshape(len(offsets) - 1, bands, width)
    keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), signatures.shape[:2])
    for function in range(width):
        keys = mix(keys) + signatures[:, :, function]
    return mix(keys)


def _set_keys(flat: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64]) -> Hashes:
    """[R] keys of the whole sets; no set is empty."""
    return mix(np.add.reduceat(mix(flat.astype(np.uint64) + np.uint64(1)), offsets[:-1]))


def candidates(tables: Sequence[Pairs]) -> Pairs:
    """[E, 2] pairs of places (earlier, later) that share a key, each once, sorted by the later.

    Args:
        tables: [n, 2] each, of key and place; all rows of a key must be among them.
    """
    table = np.concatenate([np.zeros((0, 2), np.uint64), *tables])
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    first = np.concatenate([[True], table[1:, 0] != table[:-1, 0]])[: len(table)]
    start = np.maximum.accumulate(np.where(first, np.arange(len(table)), 0))
    depth = np.arange(len(table)) - start
    pairs = [np.zeros((0, 2), np.uint64)]
    for step in range(min(_FIRST, int(depth.max(initial=0)))):
        inside = depth > step
        pairs.append(np.column_stack([table[start[inside] + step, 1], table[inside, 1]]))
    return unique_pairs(pairs)


def unique_pairs(pairs: Sequence[Pairs]) -> Pairs:
    """Pairs sorted by the later place, then the earlier one, each once."""
    joined = np.concatenate([np.zeros((0, 2), np.uint64), *pairs])
    joined = joined[np.lexsort((joined[:, 0], joined[:, 1]))]
    new = np.concatenate([[True], (joined[1:] != joined[:-1]).any(axis=1)])[: len(joined)]
    distinct: Pairs = joined[new & (joined[:, 0] != joined[:, 1])]
    return distinct


def verify(
    pairs: Pairs, later: Sketch, sketch_of: Callable[[int], Sketch], config: NearDuplicatesConfig
) -> Pairs:
    """The pairs whose sets are similar enough.

    Args:
        pairs: [E, 2] pairs whose later places lie in one unit.
        sketch_of: The sets of a unit; called for one after another, so that two units are held at a time.
    """
    earlier_units, earlier_rows = decode_places(pairs[:, 0])
    later_rows = decode_places(pairs[:, 1])[1]
    keep = np.zeros(len(pairs), bool)
    for unit in np.unique(earlier_units):
        earlier = sketch_of(int(unit))
        for at in np.flatnonzero(earlier_units == unit):
            one, other = earlier.set_of(int(earlier_rows[at])), later.set_of(int(later_rows[at]))
            keep[at] = is_similar(one, other, config.threshold) and is_similar(
                one[one & 1 == 1], other[other & 1 == 1], config.completion_threshold
            )
    return pairs[keep]


def is_similar(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32], threshold: float) -> bool:
    """Whether the Jaccard similarity of two sets is at least the threshold."""
    if min(len(one), len(other)) < threshold * max(len(one), len(other)):
        return False
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common >= threshold * (len(one) + len(other) - common)


def resolve_duplicates(pairs: Pairs) -> tuple[Places, Places]:
    """Which rows are rejected, and which row is kept for each.

    Args:
        pairs: Similar pairs, sorted as `unique_pairs` does.

    Returns:
        The places rejected, ascending, and for each the first kept place that it resembles.
    """
    kept_for: dict[int, int] = {}
    for earlier, later in _integers(pairs):
        if later not in kept_for and earlier not in kept_for:
            kept_for[later] = earlier
    return np.array(list(kept_for), np.uint64), np.array(list(kept_for.values()), np.uint64)


def _integers(pairs: Pairs, chunk: int = 1 << 16) -> Iterable[tuple[int, int]]:
    for first in range(0, len(pairs), chunk):
        yield from ((int(a), int(b)) for a, b in pairs[first : first + chunk].tolist())
