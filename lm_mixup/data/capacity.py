"""Clusters with hard bounds on their size and a floor under their similarity: the mathematics, without Ray.

No k-means variant keeps size bounds at scale, and forcing every row into a cluster (capacities that sum to N)
drives the tail among strangers. Here a capacity is an upper bound with slack, and rows without kin stay out.

All steps work on the Gram matrix of one cell (n rows, n² floats): the cosine of a row to a cluster's centre
is a sum of Gram entries, so a Lloyd step costs n² additions and not n·k·d multiplications.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RESIDUAL = -1

_ROUNDS = 4
_LLOYD_STEPS = 4
_NEAREST = 16
# Equal rows would all ask for the same few centres; noise below what fp16 embeddings resolve spreads them.
_JITTER = np.float32(1e-4)


@dataclass(frozen=True)
class Bounds:
    """What a cluster must keep.

    Attributes:
        min_size: Fewest rows.
        max_size: Most rows.
        min_similarity: Least mean cosine of a row to the other rows of its cluster. It bounds from below the
            row's cosine to the cluster's centre and to its nearest kin there, too; the cosine to the centre
            alone would let two orthogonal rows pass as a pair, at 0.71.
    """

    min_size: int
    max_size: int
    min_similarity: float

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(
                f"bounds need 1 <= min_size <= max_size, not {self.min_size} and {self.max_size}"
            )


def bounded_clusters(vectors: np.ndarray, bounds: Bounds, seed: int) -> np.ndarray:
    """Clusters the rows of one cell.

    Rounds of: rows without a cluster join those with room, the rest found new clusters (k-means with a greedy
    capacity), and clusters that break a bound shed rows or dissolve. A last step lets a row left over found a
    cluster with rows that others can spare. Ends for every input: the rounds are counted and each is finite.

    Args:
        vectors: float32 [n, d], of length 1. The order counts (it breaks ties): sort by id first.
        bounds: Sizes and similarity.
        seed: Of the first centres.

    Returns:
        int64 [n]: cluster numbers 0, 1, …, or −1 for the residual.
    """
    labels = np.full(len(vectors), RESIDUAL, dtype=np.int64)
    if len(vectors) < bounds.min_size:
        return labels
    gram = vectors @ vectors.T
    generator = np.random.default_rng(seed)
    for _ in range(_ROUNDS):
        before = np.count_nonzero(labels < 0)
        labels = _join(gram, labels, bounds)
        labels = _found(gram, labels, bounds, generator)
        labels = _settle(gram, labels, bounds)
        if np.count_nonzero(labels < 0) in (0, before):
            break
    labels = _borrow(gram, labels, bounds)
    if bounds.min_size == 1:
        alone = np.flatnonzero(labels < 0)
        labels[alone] = labels.max(initial=RESIDUAL) + 1 + np.arange(len(alone))
    return _renumber(labels)


def residual_reasons(vectors: np.ndarray, labels: np.ndarray, bounds: Bounds) -> dict[int, str]:
    """Why each row is in the residual, by row.

    `no_kin`: no other row of the cell is as similar as the floor asks; `cluster_too_small`: there is kin, but
    no cluster of the least size that keeps the floor, with room.
    """
    rows = np.flatnonzero(labels < 0)
    similar = vectors[rows] @ vectors.T
    similar[np.arange(len(rows)), rows] = -np.inf
    has_kin = similar.max(axis=1, initial=-np.inf) >= bounds.min_similarity
    return {
        int(row): "cluster_too_small" if kin else "no_kin" for row, kin in zip(rows, has_kin, strict=True)
    }


def centre_cosines(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float32 [n]: the cosine of each row to the mean of its cluster; NaN for the residual."""
    cosines = np.full(len(vectors), np.nan, dtype=np.float32)
    for members in clusters_of(labels):
        centre = vectors[members].sum(axis=0)
        length = np.linalg.norm(centre)
        cosines[members] = vectors[members] @ centre / max(float(length), 1e-12)
    return cosines


def clusters_of(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each cluster, in ascending order."""
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def greedy_capacity(cosines: np.ndarray, room: np.ndarray, nearest: int = _NEAREST) -> np.ndarray:
    """Gives rows to centres, the best pairs first, never more to a centre than it has room for.

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


def _join(gram: np.ndarray, labels: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Rows without a cluster join one that has room and is similar enough."""
    labels = _renumber(labels)
    sizes = np.bincount(labels[labels >= 0])
    pending, open_ = np.flatnonzero(labels < 0), np.flatnonzero(sizes < bounds.max_size)
    if not len(pending) or not len(open_):
        return labels
    sums, cosines = _to_centres(gram, labels, pending)
    fits = sums / sizes >= bounds.min_similarity
    choice = greedy_capacity(np.where(fits, cosines, -np.inf)[:, open_], bounds.max_size - sizes[open_])
    joined = choice >= 0
    labels[pending[joined]] = open_[choice[joined]]
    return labels


def _found(
    gram: np.ndarray, labels: np.ndarray, bounds: Bounds, generator: np.random.Generator
) -> np.ndarray:
    """New clusters among the rows without one: k-means, then the greedy capacity about its centres."""
    pending = np.flatnonzero(labels < 0)
    if len(pending) < bounds.min_size:
        return labels
    mean_size = (bounds.min_size + bounds.max_size) / 2
    count = math.ceil(len(pending) / mean_size)
    own = np.ascontiguousarray(gram[np.ix_(pending, pending)])
    seeds = _spread(own, count, generator)
    noise = generator.random((len(pending), count), dtype=np.float32) * _JITTER
    everyone = np.arange(len(pending))
    group = np.argmax(own[:, seeds] + noise, axis=1)
    for _ in range(_LLOYD_STEPS):
        group = _renumber(group)
        _, cosines = _to_centres(own, group, everyone)
        group = np.argmax(cosines + noise[:, : cosines.shape[1]], axis=1)
    group = _renumber(group)
    for _ in range(2):  # the second time about the centres of what the first one formed
        _, cosines = _to_centres(own, group, everyone)
        room = np.full(cosines.shape[1], bounds.max_size)
        group = _renumber(greedy_capacity(cosines + noise[:, : cosines.shape[1]], room))
    labels[pending] = np.where(group >= 0, group + labels.max() + 1, RESIDUAL)
    return labels


def _spread(gram: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """First centres, each drawn with odds of its squared distance to those before it (k-means++)."""
    chosen = [int(generator.integers(len(gram)))]
    nearest = gram[chosen[0]].astype(np.float64)
    for draw in generator.random(count - 1):
        odds = np.cumsum(np.maximum(1.0 - nearest, 1e-9))
        chosen.append(int(np.searchsorted(odds, draw * odds[-1])))
        np.maximum(nearest, gram[chosen[-1]], out=nearest)
    return np.array(chosen)


def _settle(gram: np.ndarray, labels: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Clusters shed their worst row until all keep the floor; those then too small dissolve."""
    while True:
        kinship = _kinship(gram, labels)
        low = np.flatnonzero((labels >= 0) & (kinship < bounds.min_similarity))
        if not len(low):
            break
        low = low[np.lexsort((low, kinship[low], labels[low]))]
        worst = low[np.diff(labels[low], prepend=RESIDUAL) != 0]
        labels[worst] = RESIDUAL
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    labels[(labels >= 0) & (sizes[labels] < bounds.min_size)] = RESIDUAL
    return labels


def _kinship(gram: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float32 [n]: mean cosine of each row to the other rows of its cluster; inf for a row alone."""
    kinship = np.full(len(labels), np.inf, dtype=np.float32)
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    if not len(order):
        return kinship
    starts = np.flatnonzero(np.diff(labels[order], prepend=RESIDUAL))
    sizes = np.diff(starts, append=len(order))
    place = np.arange(sizes.max())
    held = place < sizes[:, None]
    members = order[np.where(held, starts[:, None] + place, 0)]
    within = gram[members[:, :, None], members[:, None, :]]
    others = held[:, :, None] & held[:, None, :] & ~np.eye(len(place), dtype=bool)
    means = np.where(others, within, 0).sum(axis=2) / np.maximum(sizes - 1, 1)[:, None]
    several = held & (sizes > 1)[:, None]
    kinship[members[several]] = means[several]
    return kinship


def _borrow(gram: np.ndarray, labels: np.ndarray, bounds: Bounds) -> np.ndarray:
    """A row left over founds a cluster of the least size with its nearest rows that can be spared."""
    labels = _renumber(labels)
    for row in np.flatnonzero(labels < 0):
        if labels[row] >= 0 or bounds.min_size == 1:
            continue
        mates = _spare_mates(int(row), gram, labels, bounds)
        if mates is None:
            continue
        trial = labels.copy()
        trial[[row, *mates]] = labels.max() + 1
        touched = np.isin(trial, [trial[row], *labels[mates]]) & (trial >= 0)
        near = np.flatnonzero(touched)
        if (_kinship(gram[np.ix_(near, near)], trial[near]) >= bounds.min_similarity).all():
            labels = trial
    return labels


def _spare_mates(row: int, gram: np.ndarray, labels: np.ndarray, bounds: Bounds) -> list[int] | None:
    """The min_size − 1 rows nearest to `row` that are free or in a cluster that stays large enough."""
    near = np.flatnonzero(gram[row] >= bounds.min_similarity)
    near = near[np.argsort(-gram[row, near], kind="stable")]
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    mates: list[int] = []
    for mate in near.tolist():
        label = labels[mate]
        if mate == row or (label >= 0 and sizes[label] <= bounds.min_size):
            continue
        if label >= 0:
            sizes[label] -= 1
        mates.append(mate)
        if len(mates) == bounds.min_size - 1:
            return mates
    return None


def _to_centres(gram: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of rows to clusters, from Gram entries alone.

    Args:
        gram: float32 [n, n], symmetric.
        labels: int [n], cluster numbers without gaps.
        rows: int [m], the rows asked about.

    Returns:
        float32 [m, k] sums of the cosines to a cluster's members, and [m, k] cosines to its centre.
    """
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    starts = np.flatnonzero(np.diff(labels[order], prepend=RESIDUAL))
    sums = np.add.reduceat(gram[order], starts, axis=0)  # whole rows are added: twice as fast as columns
    squared = np.add.reduceat(sums[labels[order], order], starts)
    asked = np.ascontiguousarray(sums[:, rows].T)
    return asked, asked / np.sqrt(np.maximum(squared, 1e-12))


def _renumber(labels: np.ndarray) -> np.ndarray:
    """Cluster numbers without gaps; the residual stays −1."""
    kept = labels >= 0
    result = np.full(len(labels), RESIDUAL, dtype=np.int64)
    result[kept] = np.unique(labels[kept], return_inverse=True)[1]
    return result
