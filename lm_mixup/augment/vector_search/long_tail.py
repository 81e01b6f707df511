"""Long-tail score: how far a row lies from its nearest others (DS2's diversity score, paper section 3.4)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lm_mixup.augment.vector_search.knn import knn
from lm_mixup.core.draws import turns


def long_tail_scores(embeddings: np.ndarray, k: int) -> np.ndarray:
    """Mean cosine distance of each row to its k nearest other rows.

    Args:
        embeddings: float32 [N, d], of length 1.
        k: Neighbours; all other rows where there are no more than k.

    Returns:
        float32 [N], in [0, 2].
    """
    _, similarities = knn(embeddings, embeddings, k, exclude_self=True)
    return mean_distance(similarities)


def mean_distance(similarities: np.ndarray) -> np.ndarray:
    """Mean cosine distance from cosines [N, K] to neighbours, as float32 [N].

    With K = 0, a row alone, it is 1: as far as from a row that has nothing in common with it.
    """
    if similarities.shape[1] == 0:
        return np.ones(len(similarities), dtype=np.float32)
    distances = 1.0 - similarities.astype(np.float64)
    return np.clip(distances, 0.0, 2.0).mean(axis=1).astype(np.float32)


def listed_distance(similarities: pa.ListArray, k: int) -> np.ndarray:
    """Mean cosine distance to the k nearest of rows whose neighbours are listed, as float32 [N].

    Args:
        similarities: A list of cosines a row, best first, as the stage `neighbors` writes them.
        k: Neighbours that count; all of a shorter list. With none it is 1, as in `mean_distance`.
    """
    lengths = np.diff(similarities.offsets.to_numpy())
    row = np.repeat(np.arange(len(lengths)), lengths)
    near = turns(row) < k
    distances = 1.0 - similarities.flatten().to_numpy().astype(np.float64)[near]
    total = np.bincount(row[near], weights=np.clip(distances, 0.0, 2.0), minlength=len(lengths))
    counted = np.minimum(lengths, k)
    return np.where(counted, total / np.maximum(counted, 1), 1.0).astype(np.float32)
