"""Size-bounded clustering (sizes 2-5) against k-means++ with k = N/3 and greedy capacities that sum to N.

The peer is what one writes with scikit-learn, and what the method's official code does: as many centres as
clusters over the whole set, all N×k distances sorted, and a place for every row. The ratio is of seconds.
"""

from __future__ import annotations

import harness
import numpy as np
from sklearn.cluster import KMeans

from lm_mixup.augment.clustering.cohesion import Bounds, centre_cosines
from lm_mixup.augment.clustering.size_bounded import bounded_clusters
from lm_mixup.augment.vector_search.kmeans import split_cell

BOUNDS = Bounds(min_size=2, max_size=5, min_similarity=0.3)


def ours(vectors: np.ndarray, cell_rows: int = 1024) -> np.ndarray:
    labels = np.full(len(vectors), -1)
    for rows in split_cell(vectors, cell_rows, seed=0):
        found = bounded_clusters(vectors[rows], BOUNDS)
        labels[rows] = np.where(found >= 0, found + labels.max() + 1, -1)
    return labels


def peer(vectors: np.ndarray) -> np.ndarray:
    count = len(vectors) // 3
    centres = KMeans(count, init="k-means++", n_init=1, random_state=0).fit(vectors).cluster_centers_
    distances = (
        np.linalg.norm(vectors, axis=1)[:, None] ** 2 + (centres**2).sum(axis=1) - 2 * vectors @ centres.T
    )
    room = np.full(count, len(vectors) // count)
    room[: len(vectors) % count] += 1
    labels = np.full(len(vectors), -1)
    waiting = len(vectors)
    for place in np.argsort(distances, axis=None):
        row, centre = divmod(int(place), count)
        if labels[row] < 0 and room[centre]:
            labels[row] = centre
            room[centre] -= 1
            waiting -= 1
            if not waiting:
                break
    return labels


def figures(seconds: float, vectors: np.ndarray, labels: np.ndarray) -> dict:
    cosines = centre_cosines(vectors, labels)
    sizes = np.bincount(labels[labels >= 0])
    return {
        "seconds": round(seconds, 3),
        "rows_per_second": round(len(vectors) / seconds),
        "cosine_mean": round(float(np.nanmean(cosines)), 4),
        "cosine_p1": round(float(np.nanpercentile(cosines, 1)), 4),
        "residual": round(float((labels < 0).mean()), 4),
        "mean_size": round(float(sizes.mean()), 2),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
    }


def main() -> None:
    args = harness.arguments(__doc__.splitlines()[0])
    rows, repeats = (2_000, 3) if args.quick else (8_000, 1)
    vectors = harness.topics(rows, 1024)
    our_seconds, our_labels = harness.timed(lambda: ours(vectors), max(repeats, 3))
    peer_seconds, peer_labels = harness.timed(lambda: peer(vectors), repeats)
    harness.finish(
        "clustering",
        {"rows": rows, "width": 1024, "sizes": "2-5", "min_similarity": BOUNDS.min_similarity},
        figures(our_seconds, vectors, our_labels),
        figures(peer_seconds, vectors, peer_labels),
        peer_seconds / our_seconds,
        args.json,
    )


if __name__ == "__main__":
    main()
