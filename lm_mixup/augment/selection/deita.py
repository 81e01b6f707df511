"""The selection of Deita (arXiv 2312.15685): in order of rank, skipping rows too similar to a selected one.

Every row that comes up is compared with all rows taken before it: 2·E·T·d operations for E rows looked at, T
taken and d dimensions. E is little more than T where the pool is varied, and at worst all candidates. Memory
is one window of the ranking and the taken rows, d float32 each; no table of pairs is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lm_mixup.core.nearest import nearest

WINDOW = 65_536  # rows of the ranking whose vectors are fetched at a time: one pass over the embeddings
_BLOCK = 256  # rows compared at a time with the taken ones


@dataclass(frozen=True)
class Diverse:
    """What was taken.

    Attributes:
        rows: int64 [T], row numbers, ascending.
        too_similar: Rows skipped for their similarity to a row taken before.
        vectors: float32 [B + T, d], those that were there before and then those of the taken rows.
    """

    rows: np.ndarray
    too_similar: int
    vectors: np.ndarray


def take_diverse(
    order: np.ndarray,
    strata: np.ndarray,
    room: np.ndarray,
    fetch: Callable[[np.ndarray], np.ndarray],
    threshold: float,
    before: np.ndarray | None = None,
) -> Diverse:
    """Takes, in order, each row whose cosine to every taken row is below a threshold.

    Args:
        order: int64 [N], row numbers, best first.
        strata: int64 [N], the stratum of each row number.
        room: int64 [S], rows that each stratum may give; a row of a full one is not looked at.
        fetch: The vectors, float32 [M, d] of length 1, of some row numbers [M].
        threshold: Cosine from which a row is too like another; Deita's τ.
        before: float32 [B, d], vectors of rows taken before.
    """
    room = room.copy()
    taken_rows = _Taken(before, min(int(room.sum()), len(order)))
    taken: list[int] = []
    too_similar = 0
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        window = window[room[strata[window]] > 0]
        if not room.any():
            break
        if not len(window):
            continue
        vectors = fetch(window)
        for first in range(0, len(window), _BLOCK):
            if not room.any():
                break
            rows, block = window[first : first + _BLOCK], vectors[first : first + _BLOCK]
            picked, alike = _take_block(strata[rows], room, block, taken_rows.similarity(block), threshold)
            taken_rows.add(block[picked])
            taken += rows[picked].tolist()
            too_similar += alike
    return Diverse(np.sort(np.array(taken, dtype=np.int64)), too_similar, taken_rows.vectors())


def _take_block(
    strata: np.ndarray, room: np.ndarray, block: np.ndarray, similarity: np.ndarray, threshold: float
) -> tuple[list[int], int]:
    """Places of the rows of a block that are taken, and how many were too similar; `room` shrinks."""
    within = block @ block.T
    picked: list[int] = []
    alike = 0
    for place, stratum in enumerate(strata.tolist()):
        if not room[stratum]:
            continue
        if similarity[place] >= threshold or (within[place, picked] >= threshold).any():
            alike += 1
            continue
        picked.append(place)
        room[stratum] -= 1
    return picked, alike


class _Taken:
    """The vectors of the taken rows, with room for `more` beyond those of `before`."""

    def __init__(self, before: np.ndarray | None, more: int) -> None:
        self._rows = np.zeros((0, 0), np.float32) if before is None else before
        self._count, self._most = len(self._rows), len(self._rows) + more

    def similarity(self, block: np.ndarray) -> np.ndarray:
        """The largest cosine of each row of a block [M, d] to a taken row; −inf while there is none."""
        if not self._count:
            return np.full(len(block), -np.inf, dtype=np.float32)
        return nearest(block, self.vectors())[1]

    def add(self, vectors: np.ndarray) -> None:
        if len(self._rows) < self._most:  # at the first call: the width of a row is known
            room = np.empty((self._most, vectors.shape[1]), dtype=np.float32)
            room[: self._count] = self._rows.reshape(-1, vectors.shape[1])
            self._rows = room
        self._rows[self._count : self._count + len(vectors)] = vectors
        self._count += len(vectors)

    def vectors(self) -> np.ndarray:
        return self._rows[: self._count]
