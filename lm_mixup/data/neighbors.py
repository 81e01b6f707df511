"""Exact nearest neighbours of every row, found once and kept for curation and selection.

The bank of all embeddings is never in one process: an actor holds the part whose neighbours it looks for and
goes over the bank shard by shard, merging the best of each. What a shard gives does not depend on the others,
so the result is exact and the same however the work is spread. The cost is 2·N²·d operations: fine to about
300 thousand rows on CPUs and two million on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from lm_mixup.config import NeighborsConfig
from lm_mixup.data.embed import vectors_of
from lm_mixup.parts import PartResult, map_parts
from lm_mixup.runs import Outcome, StageDir

SHARD_ROWS = 16_384
CACHE_BYTES = 1 << 30

# Asked for beyond k, so that ties at the edge are broken by index and not by the order of the search.
_SLACK = 8
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
    found, alike = _search(queries, bank, k + 1 + _SLACK, device)
    return _best(found, alike, min(k, len(bank) - int(exclude_self)), own)


def _search(queries: np.ndarray, bank: np.ndarray, k: int, device: str) -> tuple[np.ndarray, np.ndarray]:
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
        best = (block @ stored.T).topk(k, dim=1)
        indices.append(best.indices.cpu().numpy())
        similarities.append(best.values.cpu().numpy())
    return np.concatenate(indices), np.concatenate(similarities)


def _best(
    indices: np.ndarray, similarities: np.ndarray, k: int, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of [M, C] candidates, best first, ties by index, `own` [M] (−1: none) left out."""
    similarities = np.where(indices == own[:, None], -np.inf, similarities)
    order = np.lexsort((indices, -similarities), axis=1)[:, : max(k, 0)]
    rows = np.arange(len(order))[:, None]
    return indices[rows, order].astype(np.int64), similarities[rows, order].astype(np.float32)


def neighbors(embed: StageDir, out: StageDir, config: NeighborsConfig) -> Outcome:
    """Finds the k nearest rows of every row, itself left out.

    Input columns: id, embedding. Output columns: id, neighbor_ids, similarities (best first; fewer than k
    only where the pool has fewer rows). Part i of the output holds the rows of part i of the embeddings.

    Memory of an actor: one part, one shard of 16,384 rows, at most 1 GiB of cached shards, and all ids.
    """
    map_parts(
        out,
        embed.parts(),
        make_work,
        {"embed": embed, "config": config},
        num_actors=config.num_actors,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
    return Outcome(metrics={"k": config.k})


def make_work(embed: StageDir, config: NeighborsConfig) -> Callable[[str], PartResult]:
    """Opens the bank; the function finds the neighbours of one part's rows."""
    import faiss

    faiss.omp_set_num_threads(max(1, round(config.num_cpus)))
    bank = Bank(embed)
    device = "cuda" if config.num_gpus > 0 else "cpu"

    def work(part: str) -> PartResult:
        rows = embed.read_part(part)
        own = bank.start_of(part) + np.arange(rows.num_rows)
        indices, similarities = bank.nearest(vectors_of(rows), own, config.k, device)
        return PartResult(neighbor_table(rows["id"], bank.ids, indices, similarities), rows_in=rows.num_rows)

    return work


class Bank:
    """All embeddings of a stage, gone over in shards; `ids` are those of its rows, in order."""

    def __init__(self, embed: StageDir, shard_rows: int = SHARD_ROWS, cache_bytes: int = CACHE_BYTES) -> None:
        self._embed = embed
        self._shard_rows = shard_rows
        self._room = cache_bytes
        self._cache: dict[int, pa.Table] = {}
        self._parts = embed.parts()
        columns = [embed.read_part(part, ["id"])["id"] for part in self._parts]
        self._starts = np.cumsum([0, *(len(column) for column in columns)])
        chunks = [chunk for column in columns for chunk in column.chunks]
        self.ids = pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())

    def start_of(self, part: str) -> int:
        """The bank index of the first row of a part."""
        return int(self._starts[self._parts.index(part)])

    def nearest(
        self, queries: np.ndarray, own: np.ndarray, k: int, device: str = "cpu"
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `knn`, over the whole bank; `own` int64 [M] is the bank index of each query (−1: not in it)."""
        count = len(queries)
        indices, similarities = np.zeros((count, 0), np.int64), np.zeros((count, 0), np.float32)
        nobody = np.full(count, -1)
        for start, vectors in self._shards():
            found, alike = _search(queries, vectors, k + 1 + _SLACK, device)
            indices = np.concatenate([indices, found + start], axis=1)
            similarities = np.concatenate([similarities, alike], axis=1)
            indices, similarities = _best(indices, similarities, k + 1 + _SLACK, nobody)
        in_bank = int((own >= 0).any())
        return _best(indices, similarities, min(k, len(self.ids) - in_bank), own)

    def _shards(self) -> Iterator[tuple[int, np.ndarray]]:
        """(bank index of the first row, float32 vectors) of each shard: whole parts, about `shard_rows`."""
        first = 0
        while first < len(self._parts):
            last = first + 1
            while (
                last < len(self._parts) and self._starts[last + 1] - self._starts[first] <= self._shard_rows
            ):
                last += 1
            yield int(self._starts[first]), np.concatenate([self._vectors(i) for i in range(first, last)])
            first = last

    def _vectors(self, part: int) -> np.ndarray:
        table = self._cache.get(part)
        if table is None:
            table = self._embed.read_part(self._parts[part], ["embedding"])
            if table.nbytes <= self._room:
                self._room -= table.nbytes
                self._cache[part] = table
        return vectors_of(table)


def neighbor_table(
    ids: pa.ChunkedArray, bank_ids: pa.Array, indices: np.ndarray, similarities: np.ndarray
) -> pa.Table:
    """The NEIGHBORS rows from bank indices [M, K] and similarities [M, K]."""
    offsets = pa.array(np.arange(len(indices) + 1, dtype=np.int32) * indices.shape[1])
    return pa.table(
        {
            "id": ids,
            "neighbor_ids": pa.ListArray.from_arrays(offsets, bank_ids.take(pa.array(indices.reshape(-1)))),
            "similarities": pa.ListArray.from_arrays(offsets, pa.array(similarities.reshape(-1))),
        }
    )
