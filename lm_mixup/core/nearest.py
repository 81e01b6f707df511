"""Nearest vectors by inner product: the one search behind neighbours, cells, rankings and decontamination."""

from __future__ import annotations

import numpy as np

# Candidates beyond k, so that ties at the edge are broken by index and not by the order of the search.
SLACK = 8
_GPU_BLOCK = 8_192
_WITHIN_BLOCK = 4_096
_PRODUCT_BYTES = 1 << 26  # of one block of similarities in `nearest`


def nearest(queries: np.ndarray, bank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar bank row of each query.

    Args:
        queries: float32 [M, d].
        bank: float32 [N, d], N at least 1.

    Returns:
        Indices int64 [M], the first of equally similar rows, and similarities float32 [M].
    """
    indices = np.empty(len(queries), np.int64)
    similarities = np.empty(len(queries), np.float32)
    block = max(1, _PRODUCT_BYTES // (4 * len(bank)))
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        products = queries[rows] @ bank.T
        indices[rows] = best = products.argmax(axis=1)
        similarities[rows] = products[np.arange(len(best)), best]
    return indices, similarities


def knn(
    queries: np.ndarray, bank: np.ndarray, k: int, exclude_self: bool = False, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar bank rows of each query, by inner product (cosine, for unit vectors).

    Args:
        queries: float32 [M, d].
        bank: float32 [N, d].
        exclude_self: The queries are the bank, and row i is not a neighbour of itself. Rows are excluded by
            index, so an exact duplicate of row i remains its neighbour.
        device: `cpu` (faiss) or a torch device.

    Returns:
        Indices int64 [M, K] and similarities float32 [M, K], best first, with K = min(k, N), or min(k, N − 1)
        if self is excluded. Ties are sorted by index. If at most `SLACK` rows beyond the K-th tie with it,
        the smallest indices are returned; with more, the choice depends on the search.

    Raises:
        ValueError: `exclude_self` with queries that cannot be the bank, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if exclude_self and len(queries) != len(bank):
        raise ValueError(f"exclude_self: {len(queries)} queries are not the {len(bank)} rows of the bank")
    own = np.arange(len(queries)) if exclude_self else np.full(len(queries), -1)
    if exclude_self and device == "cpu" and len(bank) > _WITHIN_BLOCK:
        found, similarities = top_k_within(bank, k + 1 + SLACK)
    else:
        found, similarities = top_k(queries, bank, k + 1 + SLACK, device)
    return keep_best(found, similarities, min(k, len(bank) - int(exclude_self)), own)


def top_k_within(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best min(k, N) rows of each row of float32 [N, d], itself included.

    Takes half the N²·d operations of `top_k`: the product of block i with block j serves the rows of both.
    Only candidates better than the k-th best so far are merged; after a row's own block these are few.
    """
    k = min(k, len(rows))
    starts = range(0, len(rows), max(_WITHIN_BLOCK, k))
    blocks = [slice(start, min(start + starts.step, len(rows))) for start in starts]
    found = [_RunningTopK(block.stop - block.start, k) for block in blocks]
    for one, block in enumerate(blocks):
        found[one].offer(rows[block] @ rows[block].T, block.start)
        for other in range(one):
            products = rows[blocks[other]] @ rows[block].T
            found[other].offer(products, block.start)
            found[one].offer(products, blocks[other].start, across=True)
    for nearest in found:
        nearest.merge()
    return np.concatenate([one.indices for one in found]), np.concatenate([one.similarities for one in found])


class _RunningTopK:
    """The k best candidates so far of each row of a block. Candidates are collected and merged in batches.

    Attributes:
        indices: int64 [M, k], −1 where there is no candidate yet.
        similarities: float32 [M, k], −inf there.
    """

    def __init__(self, count: int, k: int) -> None:
        self.indices = np.full((count, k), -1, np.int64)
        self.similarities = np.full((count, k), -np.inf, np.float32)
        self._worst = np.full(count, -np.inf, np.float32)
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def offer(self, products: np.ndarray, start: int, *, across: bool = False) -> None:
        """Similarities [M, B] to the rows from `start` on; with `across` [B, M]."""
        k = self.indices.shape[1]
        if self._worst[0] == -np.inf and products.shape[1 - across] >= k and not self._pending:
            table = products.T if across else products
            top = np.argpartition(table, -k, axis=1)[:, -k:]
            self.indices, self.similarities = top + start, np.take_along_axis(table, top, axis=1)
            self._worst = self.similarities.min(axis=1)
            return
        at = np.flatnonzero(products > (self._worst[None, :] if across else self._worst[:, None]))
        first, second = np.divmod(at, products.shape[1])
        owner, index = (second, first) if across else (first, second)
        self._pending.append((owner, index + start, products.ravel()[at]))
        if sum(len(values) for _, _, values in self._pending) > self.similarities.size:
            self.merge()

    def merge(self) -> None:
        """Merges the pending candidates."""
        count, k = self.indices.shape
        old = (np.repeat(np.arange(count), k), self.indices.ravel(), self.similarities.ravel())
        owner, index, value = (np.concatenate(column) for column in zip(old, *self._pending, strict=True))
        order = np.lexsort((index, -value, owner))
        starts = np.searchsorted(owner[order], np.arange(count))
        kept = order[starts[:, None] + np.arange(k)]
        self.indices, self.similarities = index[kept], value[kept]
        self._worst, self._pending = self.similarities[:, -1].copy(), []


def top_k(queries: np.ndarray, bank: np.ndarray, k: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """The best min(k, N) bank rows of each query, in any order: indices int64 and similarities float32."""
    k = min(k, len(bank))
    if k <= 0 or not len(queries):
        return np.zeros((len(queries), max(k, 0)), np.int64), np.zeros((len(queries), max(k, 0)), np.float32)
    if device != "cpu":
        return _top_k_torch(queries, bank, k, device)
    import faiss

    queries, bank = (np.ascontiguousarray(rows, dtype=np.float32) for rows in (queries, bank))
    similarities, indices = faiss.knn(queries, bank, k, metric=faiss.METRIC_INNER_PRODUCT)
    return indices, similarities


def _top_k_torch(queries: np.ndarray, bank: np.ndarray, k: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    import torch

    stored = torch.from_numpy(bank).to(device)
    indices, similarities = [], []
    for start in range(0, len(queries), _GPU_BLOCK):
        block = torch.from_numpy(queries[start : start + _GPU_BLOCK]).to(device)
        top = (block @ stored.T).topk(k, dim=1)
        indices.append(top.indices.cpu().numpy())
        similarities.append(top.values.cpu().numpy())
    return np.concatenate(indices), np.concatenate(similarities)


def keep_best(
    indices: np.ndarray, similarities: np.ndarray, k: int, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of [M, C] candidates, best first, ties by index; `own` [M] (−1: none) is excluded."""
    similarities = np.where(indices == own[:, None], -np.inf, similarities)
    order = np.lexsort((indices, -similarities), axis=1)[:, : max(k, 0)]
    rows = np.arange(len(order))[:, None]
    return indices[rows, order].astype(np.int64), similarities[rows, order].astype(np.float32)
