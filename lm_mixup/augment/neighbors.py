"""Stage `neighbors`: the nearest neighbours of every row, computed once for curation and selection.

The search is exact up to `exact_below` rows. No process holds all embeddings: an actor holds one part of the
queries and reads the bank shard by shard, merging the best of each. The result is exact and does not depend
on how the work is distributed. The cost
is 2·N²·d operations: fine to about 300 thousand rows on CPUs and two million on a GPU. Larger pools go to
`vector_search.ivf`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from lm_mixup.augment.embed import vectors_of
from lm_mixup.augment.vector_search.ivf import approximate_neighbors
from lm_mixup.augment.vector_search.neighbor_table import neighbor_table
from lm_mixup.config import NeighborsConfig
from lm_mixup.core.nearest import SLACK, keep_best, top_k
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import PartResult, map_parts

SHARD_ROWS = 16_384
CACHE_BYTES = 1 << 30


def neighbors(embed: StageDir, out: StageDir, config: NeighborsConfig, seed: int) -> Outcome:
    """Finds the k nearest other rows of every row: exactly, or approximately in large pools.

    Input columns: id, embedding. Output columns: id, neighbor_ids, similarities (best first; fewer than k
    only where the pool has fewer rows). Part i of the output holds the rows of part i of the embeddings.

    Memory of an actor: one part, one shard of 16,384 rows, at most 1 GiB of cached shards, and all ids.

    Args:
        seed: Of the cells of the approximate search.
    """
    if sum(receipt.rows_out for receipt in embed.receipts().values()) > config.exact_below:
        return approximate_neighbors(embed, out, config, seed)
    map_parts(
        out,
        embed.parts(),
        make_work,
        {"embed": embed, "config": config},
        num_actors=config.num_actors,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
    return Outcome(metrics={"k": config.k, "method": "exact"})


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
    """All embeddings of a stage, read in shards; `ids` are the ids of its rows, in order."""

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
            found, found_similarities = top_k(queries, vectors, k + 1 + SLACK, device)
            indices = np.concatenate([indices, found + start], axis=1)
            similarities = np.concatenate([similarities, found_similarities], axis=1)
            indices, similarities = keep_best(indices, similarities, k + 1 + SLACK, nobody)
        in_bank = int((own >= 0).any())
        return keep_best(indices, similarities, min(k, len(self.ids) - in_bank), own)

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
