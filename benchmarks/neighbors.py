"""Exact 16 nearest neighbours of every row against scikit-learn's brute force. The ratio is of seconds.

Beside it, as `approximate_…`, the stage's search through cells over the same vectors as fp16, on a Ray of its
own with an actor a core: its seconds hold what reading, starting actors and writing the table take. Recall is
against float64 products of 200 rows with all.
"""

from __future__ import annotations

import os
import tempfile

import harness
import numpy as np
from sklearn.neighbors import NearestNeighbors

from lm_mixup.augment.embed import embedding_table
from lm_mixup.augment.neighbors import neighbors
from lm_mixup.config import NeighborsConfig, RayConfig
from lm_mixup.core.nearest import knn
from lm_mixup.core.run_dir import Receipt, RunDir
from lm_mixup.distributed.ray_cluster import start_ray

K = 16
ROWS_PER_PART = 8_192


def peer(vectors: np.ndarray) -> np.ndarray:
    index = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(vectors)
    return index.kneighbors(return_distance=False)


def through_cells(vectors: np.ndarray) -> tuple[float, np.ndarray]:
    """Seconds of the approximate search of the `neighbors` stage, and the neighbours it found."""
    start_ray(RayConfig())
    config = NeighborsConfig(k=K, exact_below=2, num_actors=len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(folder)
        embed, out = run.stage("embed"), run.stage("neighbors")
        for part, start in enumerate(range(0, len(vectors), ROWS_PER_PART)):
            rows = vectors[start : start + ROWS_PER_PART]
            table = embedding_table([f"{start + i:09d}" for i in range(len(rows))], rows)
            embed.write_part(part, table, None, Receipt(part, len(rows), len(rows), 0))
        seconds, _ = harness.timed(lambda: neighbors(embed, out, config, seed=0), 1)
        found = out.read(["neighbor_ids"])["neighbor_ids"].to_pylist()
    return seconds, np.array([[int(key) for key in keys] for keys in found])


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    shared = (found[:, :, None] == truth[:, None, :]).any(axis=2)
    return float(shared.mean())


def main() -> None:
    args = harness.arguments(__doc__.splitlines()[0])
    rows, repeats = (8_000, 3) if args.quick else (60_000, 1)
    vectors = harness.topics(rows, 1024)
    our_seconds, (ours, _) = harness.timed(lambda: knn(vectors, vectors, K, exclude_self=True), repeats)
    peer_seconds, theirs = harness.timed(lambda: peer(vectors), repeats)
    cell_seconds, near = through_cells(vectors)
    sample = np.random.default_rng(0).choice(rows, 200, replace=False)
    similar = vectors[sample].astype(np.float64) @ vectors.T.astype(np.float64)
    similar[np.arange(len(sample)), sample] = -np.inf
    truth = np.argsort(-similar, axis=1)[:, :K]
    harness.finish(
        "neighbors",
        {"rows": rows, "width": 1024, "k": K},
        {
            "seconds": round(our_seconds, 3),
            "recall": round(recall(ours[sample], truth), 5),
            "approximate_seconds": round(cell_seconds, 3),
            "approximate_recall": round(recall(near[sample], truth), 5),
        },
        {"seconds": round(peer_seconds, 3), "recall": round(recall(theirs[sample], truth), 5)},
        peer_seconds / our_seconds,
        args.json,
    )


if __name__ == "__main__":
    main()
