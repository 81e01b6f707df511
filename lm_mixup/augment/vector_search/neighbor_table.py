"""The neighbour table, and the long-tail scores computed from it or from vectors.

The long-tail score is the mean cosine distance of a row to its nearest neighbours (the diversity score of
DS2, arXiv 2410.10877; paper section 3.4).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lm_mixup.core.draws import index_in_group
from lm_mixup.core.nearest import knn


def neighbor_table(
    ids: pa.ChunkedArray | pa.Array, bank_ids: pa.Array, indices: np.ndarray, similarities: np.ndarray
) -> pa.Table:
    """The rows {id, neighbor_ids, similarities} of a neighbour table.

    Args:
        ids: [M], the rows.
        bank_ids: [N], ids by bank index, as `string` or `large_string`.
        indices: int64 [M, K], best first.
        similarities: float32 [M, K]; entries of −inf are omitted from the lists.
    """
    there = np.isfinite(similarities)
    offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32))
    listed = bank_ids.take(pa.array(indices[there])).cast(pa.string())
    return pa.table(
        {
            "id": ids,
            "neighbor_ids": pa.ListArray.from_arrays(offsets, listed),
            "similarities": pa.ListArray.from_arrays(offsets, pa.array(similarities[there])),
        }
    )


def long_tail_scores(embeddings: np.ndarray, k: int) -> np.ndarray:
    """Mean cosine distance of each row to its k nearest other rows.

    Args:
        embeddings: float32 [N, d], of length 1.
        k: Neighbours; fewer rows are all used.

    Returns:
        float32 [N], in [0, 2].
    """
    _, similarities = knn(embeddings, embeddings, k, exclude_self=True)
    return mean_distance(similarities)


def mean_distance(similarities: np.ndarray) -> np.ndarray:
    """Mean cosine distance from cosines [N, K] to neighbours, as float32 [N].

    A row without neighbours (K = 0) scores 1, the distance to an orthogonal row.
    """
    if similarities.shape[1] == 0:
        return np.ones(len(similarities), dtype=np.float32)
    distances = 1.0 - similarities.astype(np.float64)
    return np.clip(distances, 0.0, 2.0).mean(axis=1).astype(np.float32)


def listed_distance(similarities: pa.ListArray, k: int) -> np.ndarray:
    """Mean cosine distance to the k nearest of rows whose neighbours are listed, as float32 [N].

    Args:
        similarities: One list of cosines per row, best first, as the stage `neighbors` writes them.
        k: Neighbours used; shorter lists are used whole. An empty list gives 1, as in `mean_distance`.
    """
    lengths = np.diff(similarities.offsets.to_numpy())
    row = np.repeat(np.arange(len(lengths)), lengths)
    near = index_in_group(row) < k
    distances = 1.0 - similarities.flatten().to_numpy().astype(np.float64)[near]
    total = np.bincount(row[near], weights=np.clip(distances, 0.0, 2.0), minlength=len(lengths))
    counted = np.minimum(lengths, k)
    return np.where(counted, total / np.maximum(counted, 1), 1.0).astype(np.float32)
