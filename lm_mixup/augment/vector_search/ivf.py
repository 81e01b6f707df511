"""Approximate nearest neighbours for large pools: inverted-file search (IVF; Jégou et al. 2011) on Ray tasks.

Rows are shuffled into cells of similar rows (`ivf_centroids`). Neighbouring cells share a bucket. Each task
takes the rows of one bucket and searches the `probes` cells nearest to each row. With C cells of m rows the
cost is 2·N·(C + probes·m)·d operations in place of 2·N²·d, and 2·N·(17·√C + probes·m)·d above 4,096 cells.
The recall is measured on sampled rows and reported in the manifest.

The result depends only on the rows, their parts and the seed, not on the number of tasks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.augment.embed import vectors_of
from lm_mixup.augment.vector_search.ivf_centroids import IvfIndex, assign_cells, build_ivf
from lm_mixup.augment.vector_search.neighbor_table import neighbor_table
from lm_mixup.augment.vector_search.shuffle import shuffle
from lm_mixup.config import NeighborsConfig
from lm_mixup.core.nearest import SLACK, keep_best, top_k
from lm_mixup.core.progress import say, track
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.distributed.ray_tasks import in_blocks, run_tasks

_QUERY_ROWS = 16_384
_SAMPLED_ROWS = 1_000
_LOW_RECALL = 0.95
_TIE = 1e-5  # similarities this close are ties: their last bits depend on the order of summation


@dataclass(frozen=True)
class Sample:
    """Sampled rows whose true neighbours are known, for the recall.

    Attributes:
        index: int64 [S], bank indices, ascending.
        least: float32 [S], similarity of the k-th nearest row.
    """

    index: np.ndarray
    least: np.ndarray


def approximate_neighbors(embed: StageDir, out: StageDir, config: NeighborsConfig, seed: int) -> Outcome:
    """Finds nearly all of the k nearest other rows of every row. Output rows as in `neighbors`.

    Metrics: `recall`, the share of the true k nearest rows that were found, over 1,000 sampled rows.

    Memory: a task holds one bucket and the candidates of 16,384 of its rows, 25 · `probes` · 12 bytes each,
    or 262,144 sampled vectors. All ids are held once per node. The object store holds the fp16 vectors twice
    (as blocks and as buckets) and the results once, 12 · k bytes per row; it spills to disk.
    """
    import ray

    parts, limit = embed.parts(), config.num_actors
    edges = _edges(embed)
    total = int(edges[-1])
    runs = in_blocks(range(len(parts)))
    task = ray.remote(load_block).options(num_cpus=config.num_cpus, num_returns=2)
    loads = [partial(task.remote, embed, [parts[i] for i in run], int(edges[run[0]])) for run in runs]
    blocks, named = zip(*run_tasks(loads, limit), strict=True)
    index = build_ivf(blocks, total, config.cell_rows, limit, seed)
    banks = _gather(shuffle(blocks, index, limit, assign_cells), config)
    sample = _sample(banks, total, config, seed)
    block_edges = edges[[*(run[0] for run in runs), len(parts)]]
    found, hits = _search_all(banks, index, sample, block_edges, config)
    ids = ray.remote(concat_ids).options(num_cpus=config.num_cpus).remote(*named)
    make_kwargs = {"edges": edges, "block_parts": len(runs[0]), "found": found, "ids": [ids]}
    map_parts(
        out,
        list(range(len(parts))),
        make_writer,
        make_kwargs,
        num_actors=config.num_actors,
        num_cpus=config.num_cpus,
    )
    recall = hits / (config.k * len(sample.index))
    if recall < _LOW_RECALL:
        say(
            f": {recall:.1%} of the nearest rows were found; raise neighbors.probes",
            lead="  neighbors",
            style="yellow",
        )
    searched = {"cells": len(index.fine), "probes": config.probes, "recall": round(recall, 4)}
    return Outcome(metrics={"k": config.k, "method": "approximate", **searched})


def _edges(embed: StageDir) -> np.ndarray:
    """int64 [parts + 1]: the bank index at which each part begins."""
    receipts = embed.receipts()
    return np.cumsum([0, *(receipts[part].rows_out for part in sorted(receipts))])


def load_block(embed: StageDir, parts: Sequence[str], first: int) -> tuple[pa.Table, pa.Array]:
    """The rows {id, group, index, embedding} of some parts, all of one group; and their ids alone.

    Ids are `large_string`: 67 million of 32 letters are more than a `string` array holds.
    """
    table = pa.concat_tables([embed.read_part(part) for part in parts]).combine_chunks()
    index = pa.array(np.arange(first, first + table.num_rows))
    group = pa.array([""] * table.num_rows, pa.string())
    ids = pa.concat_arrays([pa.array([], pa.large_string()), *table["id"].cast(pa.large_string()).chunks])
    rows = {"id": table["id"], "group": group, "index": index, "embedding": table["embedding"]}
    return pa.table(rows), ids


def concat_ids(*ids: pa.Array) -> pa.Array:
    """The ids of all blocks, by bank index."""
    return pa.concat_arrays(ids)


def _gather(buckets: Sequence[Sequence[Any]], config: NeighborsConfig) -> list[Any]:
    """One table a bucket in the object store: {index, cell, embedding}, by cell."""
    import ray

    task = ray.remote(gather_bucket).options(num_cpus=config.num_cpus)
    return run_tasks([partial(task.remote, *pieces) for pieces in buckets], config.num_actors)


def gather_bucket(*pieces: pa.Table) -> pa.Table:
    """The rows of a bucket, sorted by cell and bank index; no row at all if its cells are empty."""
    filled = [piece for piece in pieces if piece.num_rows]
    if not filled:
        return pa.table({"index": pa.array([], pa.int64()), "cell": pa.array([], pa.int64())})
    rows = pa.concat_tables(filled).select(["index", "cell", "embedding"]).combine_chunks()
    return rows.take(pc.sort_indices(rows, sort_keys=[("cell", "ascending"), ("index", "ascending")]))


def _sample(banks: Sequence[Any], total: int, config: NeighborsConfig, seed: int) -> Sample:
    """The true k-th similarity of some rows, from all rows."""
    import ray

    count = min(_SAMPLED_ROWS, total)
    wanted = np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    pick = ray.remote(rows_at).options(num_cpus=config.num_cpus)
    picked = ray.get(run_tasks([partial(pick.remote, bank, wanted) for bank in banks], config.num_actors))
    index = np.concatenate([found for found, _ in picked])
    order = np.argsort(index)
    queries = np.concatenate([vectors for found, vectors in picked if len(found)])[order]
    look = ray.remote(nearest_of_bucket).options(num_cpus=config.num_cpus)
    shared = ray.put(queries)
    calls = [partial(look.remote, bank, shared, index[order], config) for bank in banks]
    similarities = np.concatenate(ray.get(run_tasks(calls, config.num_actors)), axis=1)
    k = min(config.k, total - 1)
    return Sample(index[order], -np.partition(-similarities, k - 1, axis=1)[:, k - 1])


def rows_at(bank: pa.Table, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bank indices and vectors of the wanted rows of a bucket."""
    chosen = bank.filter(pc.is_in(bank["index"], pa.array(wanted)))
    vectors = vectors_of(chosen) if chosen.num_rows else np.zeros((0, 0), np.float32)
    return chosen["index"].to_numpy(), vectors


def nearest_of_bucket(
    bank: pa.Table, queries: np.ndarray, own: np.ndarray, config: NeighborsConfig
) -> np.ndarray:
    """Similarities float32 [S, ≤ k + 1 + slack] of the rows nearest to each query, −inf for itself."""
    if not bank.num_rows:
        return np.zeros((len(queries), 0), np.float32)
    found, similarities = top_k(queries, vectors_of(bank), config.k + 1 + SLACK, _device(config))
    return np.where(bank["index"].to_numpy()[found] == own[:, None], -np.inf, similarities)


def _device(config: NeighborsConfig) -> str:
    return "cuda" if config.num_gpus > 0 else "cpu"


def _search_all(
    banks: Sequence[Any], index: IvfIndex, sample: Sample, edges: np.ndarray, config: NeighborsConfig
) -> tuple[list[Any], int]:
    """Neighbours of all rows: a reference for each block of parts; and the hits of the sampled rows."""
    import ray

    count = len(edges) - 1
    task = ray.remote(search_bucket).options(
        num_returns=count + 1, num_cpus=config.num_cpus, num_gpus=config.num_gpus
    )
    shared = ray.put((index, sample, edges))
    calls = [partial(task.remote, shared, list(banks), bucket, config) for bucket in range(len(banks))]
    with track("neighbors", total=len(banks)) as advance:
        found = run_tasks(calls, config.num_actors, advance)
    hits = sum(ray.get([pieces[count] for pieces in found]))
    merge = ray.remote(merge_pieces).options(num_cpus=config.num_cpus)
    of_blocks = [partial(merge.remote, *(pieces[block] for pieces in found)) for block in range(count)]
    return run_tasks(of_blocks, config.num_actors), hits


def search_bucket(
    shared: tuple[IvfIndex, Sample, np.ndarray], banks: list[Any], bucket: int, config: NeighborsConfig
) -> list[Any]:
    """Neighbours of a bucket's rows {index, neighbors, similarities}, by block; last, its sample's hits."""
    import ray

    index, sample, edges = shared
    rows = ray.get(banks[bucket])
    own = rows["index"].to_numpy()
    near = np.zeros((rows.num_rows, config.k), np.int64)
    similarities = np.zeros((rows.num_rows, config.k), np.float32)
    for start in range(0, rows.num_rows, _QUERY_ROWS):  # rows of a bucket are sorted by cell
        few = slice(start, start + _QUERY_ROWS)
        queries = vectors_of(rows.slice(start, _QUERY_ROWS))
        near[few], similarities[few] = _search_cells(queries, own[few], index, banks, config)
    sampled = np.isin(own, sample.index)
    least = sample.least[np.searchsorted(sample.index, own[sampled])]
    hits = int((similarities[sampled] >= least[:, None] - _TIE).sum())
    order = np.argsort(own)
    cuts = np.searchsorted(own[order], edges)
    places = [order[start:stop] for start, stop in itertools.pairwise(cuts.tolist())]
    return [*(neighbors_by_index(own[place], near[place], similarities[place]) for place in places), hits]


def _search_cells(
    queries: np.ndarray, own: np.ndarray, index: IvfIndex, banks: Sequence[Any], config: NeighborsConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and similarities [M, k] of the best rows in the `probes` cells nearest to each query.

    Where there are fewer than k, the last have the index −1 and the similarity −inf.
    """
    import ray

    cells = index.nearest(queries, config.probes)
    keep = config.k + 1 + SLACK
    near = np.full((*cells.shape, keep), -1, np.int64)
    similarities = np.full((*cells.shape, keep), -np.inf, np.float32)
    order = np.argsort(cells, axis=None, kind="stable")[(cells < 0).sum() :]
    asked, slots = np.divmod(order, cells.shape[1])
    asked_cells = cells[asked, slots]
    for bucket in np.unique(index.bucket_of[asked_cells]).tolist():
        bank = ray.get(banks[bucket])
        bank_cells, bank_index = bank["cell"].to_numpy(), bank["index"].to_numpy()
        for cell in np.unique(asked_cells[index.bucket_of[asked_cells] == bucket]).tolist():
            first, last = np.searchsorted(bank_cells, [cell, cell + 1])
            if first == last:
                continue
            who = slice(*np.searchsorted(asked_cells, [cell, cell + 1]))
            vectors = vectors_of(bank.slice(first, last - first))
            found, values = top_k(queries[asked[who]], vectors, keep, _device(config))
            near[asked[who], slots[who], : found.shape[1]] = bank_index[first:last][found]
            similarities[asked[who], slots[who], : found.shape[1]] = values
    return _keep_best_of_many(
        near.reshape(len(queries), -1), similarities.reshape(len(queries), -1), config.k, own
    )


def _keep_best_of_many(
    near: np.ndarray, similarities: np.ndarray, k: int, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of many candidates; a partition first, which is cheaper than sorting all of them."""
    keep = min(k + 1 + SLACK, similarities.shape[1])
    top = np.argpartition(-similarities, keep - 1, axis=1)[:, :keep]
    rows = np.arange(len(near))[:, None]
    return keep_best(near[rows, top], similarities[rows, top], k, own)


def neighbors_by_index(own: np.ndarray, near: np.ndarray, similarities: np.ndarray) -> pa.Table:
    """Rows {index, neighbors, similarities}, from arrays [M], [M, k] and [M, k]; M may be 0, k may not."""
    kinds = (pa.list_(pa.int64(), near.shape[1]), pa.list_(pa.float32(), near.shape[1]))
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
        for values, kind in zip((near, similarities), kinds, strict=True)
    ]
    return pa.table({"index": own, "neighbors": lists[0], "similarities": lists[1]})


def merge_pieces(*pieces: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours and similarities [rows, k] of a block, from its pieces of all buckets, by bank index."""
    rows = pa.concat_tables(pieces).sort_by("index")
    near, similarities = (rows[name].combine_chunks() for name in ("neighbors", "similarities"))
    k = near.type.list_size
    return (
        near.flatten().to_numpy(zero_copy_only=False).reshape(-1, k),
        similarities.flatten().to_numpy(zero_copy_only=False).reshape(-1, k),
    )


def make_writer(
    edges: np.ndarray, block_parts: int, found: list[Any], ids: list[Any]
) -> Callable[[int], PartResult]:
    """Takes all ids, held once a machine; the function writes the neighbours of one part."""
    import ray

    names: pa.Array = ray.get(ids[0])

    def write(part: int) -> PartResult:
        first, last = int(edges[part]), int(edges[part + 1])
        start = int(edges[part - part % block_parts])
        near, similarities = ray.get(found[part // block_parts])
        inside = slice(first - start, last - start)
        own = names.slice(first, last - first).cast(pa.string())
        return PartResult(
            neighbor_table(own, names, near[inside], similarities[inside]), rows_in=last - first
        )

    return write
