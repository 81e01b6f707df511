"""The most similar rows by inner product: the searches that all neighbour tables and rankings are made of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

# Asked for beyond k, so that ties at the edge are broken by index and not by the order of the search.
SLACK = 8
_GPU_BLOCK = 8_192
_OWN_BLOCK = 4_096


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
        device: `cpu` (faiss flat index; where rows are searched among themselves, each product is computed
            once and serves both) or a torch device.

    Returns:
        indices int64 [M, K] and similarities float32 [M, K], best first, with K = min(k, N) or min(k, N − 1)
        if self is excluded. Ties are in the order of their indices. Where rows beyond the K-th tie with it,
        the smaller indices are taken if they are at most `SLACK`; which of more are is up to the search.

    Raises:
        ValueError: `exclude_self` with queries that cannot be the bank, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if exclude_self and len(queries) != len(bank):
        raise ValueError(f"exclude_self: {len(queries)} queries are not the {len(bank)} rows of the bank")
    own = np.arange(len(queries)) if exclude_self else np.full(len(queries), -1)
    if exclude_self and device == "cpu" and len(bank) > _OWN_BLOCK:
        found, alike = search_own(bank, k + 1 + SLACK)
    else:
        found, alike = search(queries, bank, k + 1 + SLACK, device)
    return best(found, alike, min(k, len(bank) - int(exclude_self)), own)


def search_own(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Best min(k, N) rows of each row, itself among them, in half the N²·d products of `search`.

    The product of block i with block j holds the similarities of the rows of j to those of i too. Only what
    is better than the k-th best so far is looked at: after a row's own block hardly anything.

    Args:
        rows: float32 [N, d].
        k: Rows wanted.
    """
    k = min(k, len(rows))
    starts = range(0, len(rows), max(_OWN_BLOCK, k))
    blocks = [slice(start, min(start + starts.step, len(rows))) for start in starts]
    found = [_Nearest(block.stop - block.start, k) for block in blocks]
    for one, block in enumerate(blocks):
        found[one].offer(rows[block] @ rows[block].T, block.start)
        for other in range(one):
            products = rows[blocks[other]] @ rows[block].T
            found[other].offer(products, block.start)
            found[one].offer(products, blocks[other].start, across=True)
    for nearest in found:
        nearest.settle()
    return np.concatenate([one.indices for one in found]), np.concatenate([one.alike for one in found])


class _Nearest:
    """The k best of what the rows of a block have been offered, settled when enough has come together.

    Attributes:
        indices: int64 [M, k], −1 where nothing was offered yet.
        alike: float32 [M, k], −inf there.
    """

    def __init__(self, count: int, k: int) -> None:
        self.indices = np.full((count, k), -1, np.int64)
        self.alike = np.full((count, k), -np.inf, np.float32)
        self._worst = np.full(count, -np.inf, np.float32)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def offer(self, products: np.ndarray, start: int, *, across: bool = False) -> None:
        """Similarities [M, B] to the rows from `start` on; with `across` [B, M]."""
        k = self.indices.shape[1]
        if self._worst[0] == -np.inf and products.shape[1 - across] >= k and not self._waiting:
            table = products.T if across else products
            top = np.argpartition(table, -k, axis=1)[:, -k:]
            self.indices, self.alike = top + start, np.take_along_axis(table, top, axis=1)
            self._worst = self.alike.min(axis=1)
            return
        at = np.flatnonzero(products > (self._worst[None, :] if across else self._worst[:, None]))
        first, second = np.divmod(at, products.shape[1])
        owner, index = (second, first) if across else (first, second)
        self._waiting.append((owner, index + start, products.ravel()[at]))
        if sum(len(values) for _, _, values in self._waiting) > self.alike.size:
            self.settle()

    def settle(self) -> None:
        """Takes in what is waiting."""
        count, k = self.indices.shape
        old = (np.repeat(np.arange(count), k), self.indices.ravel(), self.alike.ravel())
        owner, index, value = (np.concatenate(column) for column in zip(old, *self._waiting, strict=True))
        order = np.lexsort((index, -value, owner))
        starts = np.searchsorted(owner[order], np.arange(count))
        kept = order[starts[:, None] + np.arange(k)]
        self.indices, self.alike = index[kept], value[kept]
        self._worst, self._waiting = self.alike[:, -1].copy(), []


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
        bank_ids: [N], ids by bank index, as `string` or `large_string`.
        indices: int64 [M, K], best first.
        similarities: float32 [M, K]; −inf where there is no neighbour: such places are left out.
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
