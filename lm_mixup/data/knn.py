"""The most similar rows by inner product: the searches that all neighbour tables and rankings are made of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

# Asked for beyond k, so that ties at the edge are broken by index and not by the order of the search.
SLACK = 8
_GPU_BLOCK = 8_192


def knn(
    queries: np.ndarray, bank: np.ndarray, k: int, exclude_self: bool = False, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar bank rows of each query, by inner product (cosine, for unit vectors).

    Args:
        queries: float32 [M, d].
        bank: float32 [N, d].
        k: Neighbours wanted.
        exclude_self: The queries are the bank, and row i is no neighbour of itself. It is left out by its
            index, so an exact duplicate of row i stays its neighbour.
        device: `cpu` (faiss flat index) or a torch device.

    Returns:
        indices int64 [M, K] and similarities float32 [M, K], best first, ties by the smaller index, with
        K = min(k, N) or min(k, N − 1) if self is excluded.

    Raises:
        ValueError: `exclude_self` with queries that cannot be the bank, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if exclude_self and len(queries) != len(bank):
        raise ValueError(f"exclude_self: {len(queries)} queries are not the {len(bank)} rows of the bank")
    own = np.arange(len(queries)) if exclude_self else np.full(len(queries), -1)
    found, alike = search(queries, bank, k + 1 + SLACK, device)
    return best(found, alike, min(k, len(bank) - int(exclude_self)), own)


def search(queries: np.ndarray, bank: np.ndarray, k: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Best min(k, N) bank rows of each query, in no certain order."""
    k = min(k, len(bank))
    if k <= 0 or not len(queries):
        return np.zeros((len(queries), max(k, 0)), np.int64), np.zeros((len(queries), max(k, 0)), np.float32)
    if device != "cpu":
        return _search_torch(queries, bank, k, device)
    import faiss

    queries, bank = (np.ascontiguousarray(rows, dtype=np.float32) for rows in (queries, bank))
    similarities, indices = faiss.knn(queries, bank, k, metric=faiss.METRIC_INNER_PRODUCT)
    return indices, similarities


def _search_torch(
    queries: np.ndarray, bank: np.ndarray, k: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    stored = torch.from_numpy(bank).to(device)
    indices, similarities = [], []
    for start in range(0, len(queries), _GPU_BLOCK):
        block = torch.from_numpy(queries[start : start + _GPU_BLOCK]).to(device)
        top = (block @ stored.T).topk(k, dim=1)
        indices.append(top.indices.cpu().numpy())
        similarities.append(top.values.cpu().numpy())
    return np.concatenate(indices), np.concatenate(similarities)


def best(
    indices: np.ndarray, similarities: np.ndarray, k: int, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of [M, C] candidates, best first, ties by index, `own` [M] (−1: none) left out."""
    similarities = np.where(indices == own[:, None], -np.inf, similarities)
    order = np.lexsort((indices, -similarities), axis=1)[:, : max(k, 0)]
    rows = np.arange(len(order))[:, None]
    return indices[rows, order].astype(np.int64), similarities[rows, order].astype(np.float32)


def neighbor_table(
    ids: pa.ChunkedArray | pa.Array, bank_ids: pa.Array, indices: np.ndarray, similarities: np.ndarray
) -> pa.Table:
    """The rows {id, neighbor_ids, similarities} of a neighbour table.

    Args:
        ids: [M], the rows whose neighbours these are.
        bank_ids: [N], ids by bank index.
        indices: int64 [M, K], best first.
        similarities: float32 [M, K]; −inf where there is no neighbour: such places are left out.
    """
    there = np.isfinite(similarities)
    offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32))
    listed = bank_ids.take(pa.array(indices[there]))
    return pa.table(
        {
            "id": ids,
            "neighbor_ids": pa.ListArray.from_arrays(offsets, listed),
            "similarities": pa.ListArray.from_arrays(offsets, pa.array(similarities[there])),
        }
    )
