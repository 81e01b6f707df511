"""Average linkage with a maximum cluster size: the initial clusters of one cell.

Each round merges all pairs of clusters that are each other's nearest. For average linkage this gives the same
tree as one merge at a time, since a merged cluster is never nearer to a third one than both its halves were.
A maximum size does not change this: what is too large for a half is too large for the whole.
"""

from __future__ import annotations

import numpy as np

# With fewer mutual pairs than this share of the clusters (equal rows, a chain of rows), pairs are matched
# greedily; otherwise the number of rounds would be the number of rows.
_FEW = 1 / 32


def bounded_linkage(gram: np.ndarray, max_size: int, min_similarity: float, count: int) -> np.ndarray:
    """Merges rows until so many clusters are left, or none may be merged.

    Args:
        gram: float32 [n, n], cosines, symmetric.
        min_similarity: Least mean cosine between the rows of two clusters that are merged.
        count: Clusters wanted. The nearest merges are kept, wherever in the cell they are.

    Returns:
        int64 [n]: cluster numbers without gaps; a row that found no kin is alone in its own.
    """
    rows = len(gram)
    kept, dropped, similarity = _merges(gram, max_size, min_similarity)
    # Stable: of equal merges the earlier, so that no cluster is merged before it is formed.
    chosen = np.zeros(len(kept), dtype=bool)
    chosen[np.argsort(-similarity, kind="stable")[: max(rows - count, 0)]] = True
    parent = np.arange(rows)
    parent[dropped[chosen]] = kept[chosen]
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            return np.unique(parent, return_inverse=True)[1]
        parent = above


def _merges(
    gram: np.ndarray, max_size: int, min_similarity: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every merge, none before those it rests on.

    Returns:
        int64 [merges] the cluster that grows and the one that goes, both named by a row of theirs; float32
        [merges] the mean cosine between them, never above that of a merge it rests on.
    """
    names, sizes = np.arange(len(gram)), np.ones(len(gram), dtype=np.int64)
    formed = np.full(len(gram), np.inf, dtype=np.float32)
    similar = gram.copy()
    merges = [(names[:0], names[:0], formed[:0])]
    while max_size > 1 and len(similar) > 1:
        np.fill_diagonal(similar, -np.inf)
        nearest = similar.argmax(axis=1)
        near = similar[np.arange(len(similar)), nearest] >= min_similarity
        first, second = _pairs(similar, nearest, near, min_similarity)
        if not len(first):
            break
        reached = np.minimum.reduce([similar[first, second], formed[first], formed[second]])
        merges.append((names[first], names[second], reached))
        formed[first] = reached
        sizes[first] += sizes[second]
        near[first] = near[second] = False
        grow, rest = sizes[first] < max_size, np.flatnonzero(near)
        first, second = first[grow], second[grow]
        similar = _merge(similar, first, second, rest, sizes)
        left = np.concatenate([first, rest])
        names, formed, sizes = names[left], formed[left], sizes[left]
        full = sizes[: len(first), None] + sizes > max_size
        similar[: len(first)][full] = -np.inf
        similar[:, : len(first)][full.T] = -np.inf
    kept, dropped, similarity = (np.concatenate(column) for column in zip(*merges, strict=True))
    return kept, dropped, similarity


def _pairs(
    similar: np.ndarray, nearest: np.ndarray, near: np.ndarray, min_similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters to merge, each in one pair at most: those that are each other's nearest."""
    everyone = np.arange(len(similar))
    first = np.flatnonzero(near & (nearest[nearest] == everyone) & (everyone < nearest))
    if len(first) >= _FEW * np.count_nonzero(near):
        return first, nearest[first]
    waiting = np.flatnonzero(near)
    waiting = waiting[np.argsort(-similar[waiting, nearest[waiting]], kind="stable")]
    free = np.ones(len(similar), dtype=bool)
    pairs: list[tuple[int, int]] = []
    for one in waiting.tolist():
        other = int(np.where(free, similar[one], -np.inf).argmax())
        if free[one] and free[other] and similar[one, other] >= min_similarity:
            free[[one, other]] = False
            pairs.append((one, other))
    matched = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return matched[:, 0], matched[:, 1]


def _merge(
    similar: np.ndarray, first: np.ndarray, second: np.ndarray, rest: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Mean cosines among the merged clusters (first) and the rest, from those before.

    Args:
        similar: float32 [k, k].
        first: int64 [m], clusters that grew.
        second: int64 [m], what each took in.
        rest: int64 [r], the others that stay.
        sizes: int64 [k], with what `first` took in.

    Returns:
        float32 [m + r, m + r].
    """
    merged, share = len(first), (sizes[second] / sizes[first]).astype(np.float32)
    rows = similar[first] * (1 - share)[:, None] + similar[second] * share[:, None]
    across = rows[:, rest]
    result = np.empty((merged + len(rest), merged + len(rest)), dtype=np.float32)
    result[:merged, :merged] = rows[:, first] * (1 - share) + rows[:, second] * share
    result[:merged, merged:] = across
    result[merged:, :merged] = across.T
    result[merged:, merged:] = similar[np.ix_(rest, rest)]
    return result
