"""Local search: rows move between clusters or swap, where that raises the sum of cosines to the centres.

The objective is that of spherical k-means. The contribution of a cluster is the length of the sum of its
rows. The number of clusters does not change, and each cluster keeps its bounds.
"""

from __future__ import annotations

import numpy as np

from lm_mixup.augment.clustering.cohesion import RESIDUAL, Bounds, Clusters

_PASSES = 6
_NEAREST = 6
# Above the rounding error of sums of float32 cosines, so that every accepted change is a true gain.
_LEAST_GAIN = 1e-4


def refine(gram: np.ndarray, labels: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Runs passes of moves and swaps, the best first, each cluster in at most one change per pass.

    Candidates are the clusters of the nearest rows. A row may move to a cluster with room if its own stays
    large enough, or swap with a row there. Ties go to the smaller row.

    Args:
        gram: float32 [n, n], cosines.
        labels: int64 [n], cluster numbers without gaps, or −1; those rows stay out.
        bounds: What all clusters keep and will keep.

    Returns:
        int64 [n]. The objective is never less than before.
    """
    labels = labels.copy()
    if labels.max(initial=RESIDUAL) < 1:
        return labels
    nearest = _nearest_clustered(gram, labels)
    for _ in range(_PASSES):
        rows, targets, partners = _improving_changes(gram, labels, nearest, bounds)
        if not len(rows):
            break
        homes = labels[rows]
        touched = np.zeros(labels.max() + 1, dtype=bool)
        for row, home, target, partner in np.stack([rows, homes, targets, partners], axis=1).tolist():
            if not (touched[home] or touched[target]):
                touched[home] = touched[target] = True
                labels[row] = target
                if partner >= 0:
                    labels[partner] = home
    return labels


def _nearest_clustered(gram: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 [n, nearest]: the nearest clustered rows of each clustered row; of the others, the row itself."""
    rows = np.flatnonzero(labels >= 0)
    count = min(_NEAREST, max(len(rows) - 1, 0))
    nearest = np.repeat(np.arange(len(labels))[:, None], count, axis=1)
    similar = gram[np.ix_(rows, rows)]
    np.fill_diagonal(similar, -np.inf)
    everyone = np.arange(len(rows))
    for place in range(count):  # a few maxima cost a tenth of a partial sort
        best = similar.argmax(axis=1)
        nearest[rows, place] = rows[best]
        similar[everyone, best] = -np.inf
    return nearest


def _improving_changes(
    gram: np.ndarray, labels: np.ndarray, nearest: np.ndarray, bounds: Bounds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes that raise the objective and keep the bounds, the best first.

    Returns:
        int64 [c] each: the row, the cluster it goes to, and the row that takes its place or −1 for a move.
    """
    clusters = Clusters.of_labels(gram, labels)
    sums = np.zeros(len(labels), dtype=np.float32)
    sums[clusters.members[clusters.held]] = clusters.sums[clusters.held]
    rows, targets = _candidate_moves(gram, labels, nearest, clusters, sums)
    homes = labels[rows]
    there, taken = clusters.members[targets], clusters.held[targets]
    here, ours = clusters.members[homes], clusters.held[homes]
    to_target = gram[rows[:, None], there] * taken
    to_home = (gram[there[:, :, None], here[:, None, :]] * ours[:, None, :]).sum(axis=2)
    # Squared lengths: |S − x|² and |T + x|² as x moves from S to T; |S − x + y|² and |T + x − y|² in a swap.
    squared = clusters.lengths**2
    left = (squared[homes] - 2 * sums[rows] + 1)[:, None]
    grown = (squared[targets] + 2 * to_target.sum(axis=1) + 1)[:, None]
    homes_after = np.concatenate([left, left + 2 * (to_home - to_target) + 1], axis=1)
    targets_after = np.concatenate([grown, grown - 2 * (sums[there] + to_target) + 1], axis=1)
    after = np.sqrt(np.maximum(homes_after, 0)) + np.sqrt(np.maximum(targets_after, 0))
    can_move = (clusters.sizes[homes] > bounds.min_size) & (clusters.sizes[targets] < bounds.max_size)
    after[~np.concatenate([can_move[:, None], taken], axis=1)] = -np.inf
    choice = after.argmax(axis=1)
    partners = np.where(choice > 0, there[np.arange(len(rows)), choice - 1], RESIDUAL)
    likely = after[np.arange(len(rows)), choice] - np.sqrt(squared[homes]) - np.sqrt(squared[targets]) > 0
    rows, targets, partners = rows[likely], targets[likely], partners[likely]
    gains = _gains(gram, labels, clusters, rows, targets, partners, bounds)
    order = np.lexsort((targets, rows, -gains))
    order = order[gains[order] > _LEAST_GAIN]
    return rows[order], targets[order], partners[order]


def _candidate_moves(
    gram: np.ndarray, labels: np.ndarray, nearest: np.ndarray, clusters: Clusters, sums: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows, and clusters near them whose rows (maybe but for one) are nearer than those of their own."""
    near = labels[nearest]
    rows, place = np.nonzero((near >= 0) & (near != labels[:, None]))
    rows, targets = np.divmod(np.unique(rows * len(clusters.sizes) + near[rows, place]), len(clusters.sizes))
    held, sizes = clusters.held[targets], clusters.sizes[targets]
    cosines = gram[rows[:, None], clusters.members[targets]]
    total = np.where(held, cosines, 0).sum(axis=1)
    farthest = np.where(held, cosines, np.inf).min(axis=1)
    mean = np.maximum(total / sizes, (total - farthest) / np.maximum(sizes - 1, 1))
    others = clusters.sizes[labels[rows]] - 1
    promising = (others > 0) & (mean * others > sums[rows] - 1)
    return rows[promising], targets[promising]


def _gains(
    gram: np.ndarray,
    labels: np.ndarray,
    clusters: Clusters,
    rows: np.ndarray,
    targets: np.ndarray,
    partners: np.ndarray,
    bounds: Bounds,
) -> np.ndarray:
    """float32 [c]: what each change adds to the objective, summed anew; −inf where it breaks the floor."""
    homes, swap = labels[rows], partners >= 0
    here, there = clusters.members[homes], clusters.members[targets]
    leaves, yields = here == rows[:, None], there == partners[:, None]
    home = Clusters.measure(
        gram,
        np.where(leaves & swap[:, None], partners[:, None], here),
        clusters.held[homes] & ~(leaves & ~swap[:, None]),
    )
    target = Clusters.measure(
        gram,
        np.column_stack([np.where(yields, rows[:, None], there), rows]),
        np.column_stack([clusters.held[targets], ~swap]),
    )
    least = np.minimum(home.kinship.min(axis=1), target.kinship.min(axis=1))
    gains = home.lengths + target.lengths - clusters.lengths[homes] - clusters.lengths[targets]
    return np.where(least >= bounds.min_similarity, gains, -np.inf)
