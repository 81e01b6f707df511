"""Clustering with hard size bounds and a similarity floor: the mathematics, without Ray.

Forcing every row into a cluster (capacities that sum to N) assigns the last rows to unrelated clusters. Here
a capacity is an upper bound with slack, and rows that are similar to no cluster form a residual.

All steps use the Gram matrix of one cell (n rows, n² floats): every quantity of a cluster is a sum of its
entries. The algorithm is deterministic.
"""

from __future__ import annotations

import math

import numpy as np

from lm_mixup.augment.clustering.cohesion import RESIDUAL, Bounds, Clusters, kinship_of, renumber
from lm_mixup.augment.clustering.linkage import bounded_linkage
from lm_mixup.augment.clustering.refine import refine

REASONS = ("no_kin", "kin_in_form_only", "cluster_too_small")
"""Why a row is in the residual: no other row of the cell is as similar as the floor asks; of those that are
none has a common subject with it; there is kin, but no cluster of the least size that keeps the floor, with
room."""

# Target size, as a position between the bounds. Larger targets mix neighbouring topics.
_AIM = 2 / 3
_ROUNDS = 4
_NEAREST = 16
# Equal rows would all request the same centres, so each row prefers a different one by less than fp16
# resolves.
_PREFERENCE = np.float32(1e-4)


def bounded_clusters(vectors: np.ndarray, bounds: Bounds, mergeable: np.ndarray | None = None) -> np.ndarray:
    """Clusters the rows of one cell.

    1. Average linkage forms clusters.
    2. A single row joins the cluster of its nearest row or, if that is full, forms one with rows that other
       clusters can give up.
    3. Up to `_ROUNDS` rounds assign the rows that are still in no cluster of the minimum size.
    4. Rows move and swap where that brings them nearer to their centres (`refine`).

    Args:
        vectors: float32 [n, d], of length 1. The order counts (it breaks ties): sort by id first.
        mergeable: bool [n, n], symmetric: which two rows have a common subject; default: all. Of two that
            have none the similarity counts as −1: they share a cluster only where most of its rows bind them.

    Returns:
        int64 [n]: cluster numbers 0, 1, …, or −1 for the residual.
    """
    if len(vectors) < bounds.min_size:
        return np.full(len(vectors), RESIDUAL, dtype=np.int64)
    gram = vectors @ vectors.T
    if mergeable is not None:
        gram[~(mergeable | np.eye(len(gram), dtype=bool))] = -1
    labels = _enforce_floor(gram, _linkage(gram, bounds), bounds)
    labels = _join(gram, labels, bounds, nearest_only=True)
    labels = _borrow(gram, _enforce_floor(gram, labels, bounds), bounds)
    for _ in range(_ROUNDS):
        before = labels
        labels = _form_clusters(gram, labels, bounds)
        labels = _enforce_floor(gram, _join(gram, labels, bounds), bounds)
        if np.array_equal(labels, before):
            break
    labels = _enforce_floor(gram, _join(gram, _dissolve(labels, bounds), bounds), bounds)
    labels = _borrow(gram, _dissolve(labels, bounds), bounds)
    return renumber(refine(gram, labels, bounds))


def residual_reasons(
    vectors: np.ndarray, labels: np.ndarray, bounds: Bounds, mergeable: np.ndarray | None = None
) -> dict[int, str]:
    """Why each row is in the residual, by row: one of `REASONS`, the last that holds."""
    rows = np.flatnonzero(labels < 0)
    similar = vectors[rows] @ vectors.T
    similar[np.arange(len(rows)), rows] = -np.inf
    kin = similar >= bounds.min_similarity
    with_subject = kin if mergeable is None else kin & mergeable[rows]
    place = kin.any(axis=1).astype(np.int64) + with_subject.any(axis=1)
    return {int(row): REASONS[reason] for row, reason in zip(rows, place.tolist(), strict=True)}


def greedy_capacity(cosines: np.ndarray, room: np.ndarray, nearest: int = _NEAREST) -> np.ndarray:
    """Assigns rows to centres greedily, the best pairs first, within the capacity of each centre.

    Args:
        cosines: float32 [m, k]; −inf where a row may not go to a centre.
        room: int [k], rows each centre can take.
        nearest: Centres a row may ask for.

    Returns:
        int64 [m]: the centre of each row, or −1 if all it asked for were full. Ties go to the smaller row,
        then to the smaller centre.
    """
    rows, centres = cosines.shape
    choice = np.full(rows, RESIDUAL, dtype=np.int64)
    if not rows or not centres:
        return choice
    nearest = min(nearest, centres)
    asked = np.argpartition(-cosines, nearest - 1, axis=1)[:, :nearest]
    value = np.take_along_axis(cosines, asked, axis=1).reshape(-1)
    row, centre = np.repeat(np.arange(rows), nearest), asked.reshape(-1)
    order = np.lexsort((centre, row, -value))
    order = order[np.isfinite(value[order])]
    left, taken, missing = room.tolist(), choice.tolist(), rows
    for r, c in zip(row[order].tolist(), centre[order].tolist(), strict=True):
        if taken[r] < 0 and left[c] > 0:
            taken[r] = c
            left[c] -= 1
            missing -= 1
            if not missing:
                break
    return np.array(taken, dtype=np.int64)


def _linkage(gram: np.ndarray, bounds: Bounds) -> np.ndarray:
    """int64 [n]: clusters of a good size, some still too small."""
    size = bounds.min_size + _AIM * (bounds.max_size - bounds.min_size)
    return bounded_linkage(gram, bounds.max_size, bounds.min_similarity, math.ceil(len(gram) / size))


def _form_clusters(gram: np.ndarray, labels: np.ndarray, bounds: Bounds) -> np.ndarray:
    """New clusters among the rows without one."""
    pending = np.flatnonzero(labels < 0)
    if len(pending) < bounds.min_size:
        return labels
    labels = labels.copy()
    labels[pending] = labels.max() + 1 + _linkage(gram[np.ix_(pending, pending)], bounds)
    return _release_small(labels, bounds)


def _join(gram: np.ndarray, labels: np.ndarray, bounds: Bounds, nearest_only: bool = False) -> np.ndarray:
    """Rows without a cluster join one that has room and is similar enough.

    With `nearest_only` that of the nearest row that has one, or none.
    """
    labels = renumber(labels)
    clusters = Clusters.of_labels(gram, labels)
    room = bounds.max_size - clusters.sizes
    pending, open_ = np.flatnonzero(labels < 0), np.flatnonzero(room)
    if not len(pending) or not len(open_):
        return labels
    sums = (gram[pending[:, None, None], clusters.members[open_]] * clusters.held[open_]).sum(axis=2)
    allowed = sums / clusters.sizes[open_] >= bounds.min_similarity
    if nearest_only:
        nearest = np.where(labels >= 0, gram[pending], -np.inf).argmax(axis=1)
        allowed &= labels[nearest][:, None] == open_
    cosines = sums / np.maximum(clusters.lengths[open_], 1e-6)
    turn = (np.arange(len(open_)) - np.arange(len(pending))[:, None]) % len(open_)
    cosines -= _PREFERENCE * (turn / len(open_)).astype(np.float32)
    choice = greedy_capacity(np.where(allowed, cosines, -np.inf), room[open_])
    joined = choice >= 0
    labels[pending[joined]] = open_[choice[joined]]
    return labels


def _enforce_floor(gram: np.ndarray, labels: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Removes the worst row of each cluster until every row keeps the floor, then releases small clusters."""
    labels = labels.copy()
    while True:
        kinship = kinship_of(gram, labels)
        low = np.flatnonzero((labels >= 0) & (kinship < bounds.min_similarity))
        if not len(low):
            return _release_small(labels, bounds)
        low = low[np.lexsort((low, kinship[low], labels[low]))]
        labels[low[np.diff(labels[low], prepend=RESIDUAL) != 0]] = RESIDUAL


def _release_small(labels: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Dissolves most clusters below the minimum size; the largest remain, for other rows to join.

    As many remain as their rows together can fill to the minimum size. Single rows are always released.
    """
    labels = renumber(labels)
    sizes = np.bincount(labels[labels >= 0])
    small = np.flatnonzero(sizes < bounds.min_size)
    small = small[np.argsort(-sizes[small], kind="stable")]
    remain = np.arange(len(small)) < sizes[small].sum() // bounds.min_size
    labels[np.isin(labels, small[~remain | (sizes[small] == 1)])] = RESIDUAL
    return renumber(labels)


def _dissolve(labels: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Dissolves every cluster below the minimum size."""
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    return renumber(np.where((labels >= 0) & (sizes[labels] >= bounds.min_size), labels, RESIDUAL))


def _borrow(gram: np.ndarray, labels: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Forms a cluster of the minimum size around each unassigned row, from rows that can be given up."""
    for row in np.flatnonzero(labels < 0).tolist():
        if labels[row] >= 0:
            continue
        mates = _spare_mates(row, gram, labels, bounds)
        if mates is None:
            continue
        trial = labels.copy()
        trial[[row, *mates]] = labels.max() + 1
        near = np.flatnonzero(np.isin(trial, [trial[row], *labels[mates][labels[mates] >= 0]]))
        if (kinship_of(gram[np.ix_(near, near)], trial[near]) >= bounds.min_similarity).all():
            labels = trial
    return labels


def _spare_mates(row: int, gram: np.ndarray, labels: np.ndarray, bounds: Bounds) -> list[int] | None:
    """The min_size − 1 rows nearest to `row` that are free or in a cluster that stays large enough."""
    near = np.flatnonzero(gram[row] >= bounds.min_similarity)
    near = near[np.argsort(-gram[row, near], kind="stable")]
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    mates: list[int] = []
    for mate in near.tolist():
        if len(mates) == bounds.min_size - 1:
            break
        label = labels[mate]
        if mate == row or (label >= 0 and sizes[label] <= bounds.min_size):
            continue
        if label >= 0:
            sizes[label] -= 1
        mates.append(mate)
    return mates if len(mates) == bounds.min_size - 1 else None
