"""Exact 16 nearest neighbours of every row against scikit-learn's brute force. The ratio is of seconds."""

from __future__ import annotations

import harness
import numpy as np
from sklearn.neighbors import NearestNeighbors

from lm_mixup.data.knn import knn

K = 16


def peer(vectors: np.ndarray) -> np.ndarray:
    index = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(vectors)
    return index.kneighbors(return_distance=False)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    shared = (found[:, :, None] == truth[:, None, :]).any(axis=2)
    return float(shared.mean())


def main() -> None:
    args = harness.arguments(__doc__.splitlines()[0])
    rows, repeats = (8_000, 3) if args.quick else (60_000, 1)
    vectors = harness.topics(rows, 1024)
    our_seconds, (ours, _) = harness.timed(lambda: knn(vectors, vectors, K, exclude_self=True), repeats)
    peer_seconds, theirs = harness.timed(lambda: peer(vectors), repeats)
    sample = np.random.default_rng(0).choice(rows, 200, replace=False)
    similar = vectors[sample].astype(np.float64) @ vectors.T.astype(np.float64)
    similar[np.arange(len(sample)), sample] = -np.inf
    truth = np.argsort(-similar, axis=1)[:, :K]
    harness.finish(
        "neighbors",
        {"rows": rows, "width": 1024, "k": K},
        {"seconds": round(our_seconds, 3), "recall": round(recall(ours[sample], truth), 5)},
        {"seconds": round(peer_seconds, 3), "recall": round(recall(theirs[sample], truth), 5)},
        peer_seconds / our_seconds,
        args.json,
    )


if __name__ == "__main__":
    main()
