"""Spherical k-means, which splits a large group of rows into cells small enough for exact clustering."""

from __future__ import annotations

import math

import numpy as np

from lm_mixup.core.nearest import nearest

_STEPS = 8
_OVERSIZED = 1.5


def spherical_kmeans(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centres of unit vectors under the cosine.

    An empty centre moves to the row with the lowest cosine to its own centre, which keeps cell sizes similar.

    Args:
        vectors: float32 [n, d], of length 1.
        count: Centres wanted; at most n are made.

    Returns:
        float32 [min(count, n), d], of length 1.
    """
    count = min(count, len(vectors))
    chosen = np.random.default_rng(seed).choice(len(vectors), count, replace=False)
    centres = vectors[np.sort(chosen)]
    for _ in range(_STEPS):
        labels, cosines = nearest(vectors, centres)
        order = np.argsort(labels, kind="stable")
        present, starts = np.unique(labels[order], return_index=True)
        sums = np.add.reduceat(vectors[order], starts, axis=0)
        centres = centres.copy()
        centres[present] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        empty = np.setdiff1d(np.arange(count), present)
        centres[empty] = vectors[np.argsort(cosines, kind="stable")[: len(empty)]]
    return centres


def is_oversized(rows: int, cell_rows: int) -> bool:
    """Whether a cell must be split. A cell somewhat larger than `cell_rows` is left whole."""
    return rows > _OVERSIZED * cell_rows


def split_cell(vectors: np.ndarray, cell_rows: int, seed: int) -> list[np.ndarray]:
    """Cuts rows into cells of about `cell_rows`, splitting again whatever stays oversized.

    Args:
        vectors: float32 [n, d], of length 1, sorted by id.
        cell_rows: Rows of a cell; no cell has more than 1.5 times as many.

    Returns:
        The rows of each cell, ascending: a partition of range(n).
    """
    done: list[np.ndarray] = []
    todo = [np.arange(len(vectors))]
    while todo:
        rows = todo.pop()
        if not is_oversized(len(rows), cell_rows):
            done.append(rows)
            continue
        count = math.ceil(len(rows) / cell_rows)
        centres = spherical_kmeans(vectors[_sample(rows, 64 * count, seed)], count, seed)
        labels, _ = nearest(vectors[rows], centres)
        pieces = [rows[labels == label] for label in np.unique(labels)]
        if len(pieces) == 1:  # equal rows cannot be told apart: cut by position
            pieces = np.array_split(rows, count)
        todo.extend(reversed(pieces))
    return done


def _sample(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    if len(rows) <= size:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))
