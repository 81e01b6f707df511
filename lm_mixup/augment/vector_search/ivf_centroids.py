"""The cells of the approximate search: one table of centres, or two levels of them.

Up to `_FLAT_CELLS` cells, centres are fitted and searched as one table. With more cells, fine centres are
fitted per coarse cell from a sample of its rows, and a row is compared only with the fine centres of its
nearest coarse cells. With C cells below √C coarse ones that is √C + 16·√C comparisons in place of C, so that
the rows of a cell need not grow with the pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from lm_mixup.augment.embed import vectors_of
from lm_mixup.augment.vector_search.kmeans import spherical_kmeans
from lm_mixup.augment.vector_search.shuffle import plan_cells, sample_rows, shuffle, split_by_bucket
from lm_mixup.core.nearest import top_k
from lm_mixup.distributed.ray_tasks import run_tasks

_FLAT_CELLS = 4_096
_COARSE_PROBES = 16
_SAMPLE_PER_CELL = 32
_BUCKET_ROWS = 16_384
_MOST_BUCKETS = 512


@dataclass(frozen=True)
class IvfIndex:
    """The centres of all cells, numbered so that similar cells have close numbers.

    Attributes:
        coarse: float32 [R, d], centres of the coarse cells; a single unused one for a flat table.
        fine: float32 [C, d], centres of the cells; those of one coarse cell are adjacent.
        starts: int64 [R + 1], the first cell below each coarse one.
        bucket_of: int64 [C], the bucket of each cell.
    """

    coarse: np.ndarray
    fine: np.ndarray
    starts: np.ndarray
    bucket_of: np.ndarray

    @property
    def buckets(self) -> int:
        """Number of buckets."""
        return int(self.bucket_of[-1]) + 1

    def nearest(self, queries: np.ndarray, count: int) -> np.ndarray:
        """The cells nearest to each query, in any order.

        Args:
            queries: float32 [M, d].

        Returns:
            int64 [M, min(count, C)]; −1 where fewer lie below the nearest coarse cells.
        """
        count = min(count, len(self.fine))
        if len(self.coarse) == 1:
            return top_k(queries, self.fine, count, "cpu")[0]
        above = top_k(queries, self.coarse, _COARSE_PROBES, "cpu")[0]
        cells = np.full((*above.shape, count), -1, np.int64)
        similarities = np.full((*above.shape, count), -np.inf, np.float32)
        for coarse in np.unique(above).tolist():
            rows, slots = np.nonzero(above == coarse)
            start, stop = self.starts[coarse : coarse + 2]
            found, values = top_k(queries[rows], self.fine[start:stop], count, "cpu")
            cells[rows, slots, : found.shape[1]] = found + start
            similarities[rows, slots, : found.shape[1]] = values
        cells, similarities = cells.reshape(len(queries), -1), similarities.reshape(len(queries), -1)
        best = np.argpartition(-similarities, count - 1, axis=1)[:, :count]
        return np.take_along_axis(cells, best, axis=1)


def build_ivf(blocks: Sequence[Any], total: int, cell_rows: int, num_tasks: int, seed: int) -> IvfIndex:
    """Fits the cells of all rows.

    Args:
        blocks: Object references to tables {id, group, embedding, …}, all of the group "".
        cell_rows: Rows wanted in a cell; there are two cells at least.

    Memory of a task: 262,144 sampled vectors at most, or the samples of one bucket of coarse cells.
    """
    wanted = math.ceil(total / min(cell_rows, max(total // 2, 1)))
    flat = wanted <= _FLAT_CELLS
    counted = wanted if flat else math.isqrt(wanted)
    plan = plan_cells(blocks, {"": total}, math.ceil(total / counted), num_tasks, seed)
    if flat:
        fine = plan.centres[""]
        coarse, starts = fine[:1], np.array([0, len(fine)])
    else:
        coarse, fine, starts = _split(blocks, plan, _SAMPLE_PER_CELL * wanted / total, num_tasks, seed)
    return _order_by_proximity(coarse, fine, starts, total)


def _split(
    blocks: Sequence[Any], plan: Any, rate: float, num_tasks: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres below each coarse cell of a plan, from a sample of its rows: coarse, fine and starts."""
    import ray

    draw, fit = ray.remote(sample_rows), ray.remote(fit_fine_centres)
    samples = run_tasks([partial(draw.remote, block, {"": rate}, seed) for block in blocks], num_tasks)
    buckets = shuffle(samples, plan, num_tasks)
    fitted = ray.get(run_tasks([partial(fit.remote, seed, *pieces) for pieces in buckets], num_tasks))
    below = {cell: centres for found in fitted for cell, centres in found.items()}
    cells = sorted(below)  # a coarse cell without a sampled row is none
    starts = np.cumsum([0, *(len(below[cell]) for cell in cells)])
    return plan.centres[""][cells], np.concatenate([below[cell] for cell in cells]), starts


def fit_fine_centres(seed: int, *pieces: pa.Table) -> dict[int, np.ndarray]:
    """The centres below each coarse cell of a bucket, one for every so many sampled rows."""
    filled = [piece for piece in pieces if piece.num_rows]
    if not filled:
        return {}
    rows = pa.concat_tables(filled).sort_by([("cell", "ascending"), ("id", "ascending")])
    numbers, starts = np.unique(rows["cell"].to_numpy(), return_index=True)
    groups = np.split(vectors_of(rows), starts[1:])
    return {
        cell: spherical_kmeans(vectors, math.ceil(len(vectors) / _SAMPLE_PER_CELL), seed)
        for cell, vectors in zip(numbers.tolist(), groups, strict=True)
    }


def _order_by_proximity(coarse: np.ndarray, fine: np.ndarray, starts: np.ndarray, total: int) -> IvfIndex:
    """Renumbers the cells so that similar ones have close numbers, and packs them into buckets.

    The rows of a bucket then search cells in few other buckets.
    """
    count = len(fine)
    per_bucket = max(1, _BUCKET_ROWS * count // total, -(-count // _MOST_BUCKETS))
    roots = np.concatenate(list(_bisect(coarse, np.arange(len(coarse)), 1)))
    order = [
        cells
        for root in roots.tolist()
        for cells in _bisect(fine, np.arange(*starts[root : root + 2]), per_bucket)
    ]
    ends = np.cumsum([0, *np.diff(starts)[roots]])
    return IvfIndex(coarse[roots], fine[np.concatenate(order)], ends, np.arange(count) // per_bucket)


def _bisect(centres: np.ndarray, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Splits rows across their direction of largest variance, recursively, into runs of at most `size`."""
    if len(rows) <= size:
        yield rows
        return
    centred = centres[rows] - centres[rows].mean(axis=0)
    direction = centred[np.argmax((centred**2).sum(axis=1))]
    for _ in range(8):  # power iteration
        direction = centred.T @ (centred @ direction)
        direction /= max(float(np.linalg.norm(direction)), 1e-12)
    order = rows[np.argsort(centred @ direction, kind="stable")]
    middle = -(-len(rows) // (2 * size)) * size  # whole buckets on the left
    yield from _bisect(centres, order[:middle], size)
    yield from _bisect(centres, order[middle:], size)


def assign_cells(block: pa.Table, index: IvfIndex) -> list[pa.Table]:
    """The rows of a block, with their `cell`, divided among the buckets."""
    cells = np.zeros(0, np.int64)
    if block.num_rows:
        cells = index.nearest(vectors_of(block), 1)[:, 0]
    return split_by_bucket(
        block.append_column("cell", pa.array(cells)), index.bucket_of[cells], index.buckets
    )
