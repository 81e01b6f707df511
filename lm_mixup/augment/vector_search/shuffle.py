"""Shuffles rows into cells of similar rows, with Ray tasks.

The shuffle has two steps: every block of rows is split by bucket of cells, then each bucket gathers its
pieces. The cell of a row depends on its vector and on centres fitted to a sample drawn by row id, and cells
sort their rows by id, so cells do not depend on blocks, buckets, workers or parts. One exception: a matrix
product may round the last bit of a cosine differently by the position of the row in its block, which decides
between two centres that are equally near otherwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.augment.embed import vectors_of
from lm_mixup.augment.vector_search.kmeans import is_oversized, spherical_kmeans
from lm_mixup.core.draws import hash_of
from lm_mixup.core.nearest import nearest
from lm_mixup.distributed.ray_tasks import as_refs, remote_with_returns, run_tasks

# Above this many cells a flat search for the nearest centre costs more than the clusters themselves: cells
# are then coarse, and each is split again where its rows are.
_FLAT_CELLS = 4_096
_COARSE_ROWS = 65_536
_SAMPLE_PER_CELL = 64
# Pieces of the shuffle number at most _MOST_BUCKETS², each small enough for the object store.
_MOST_BUCKETS = 512
_BUCKET_ROWS = 16_384


@dataclass(frozen=True)
class CellPlan:
    """The cells of each group.

    Attributes:
        first: Number of a group's first cell.
        centres: float32 [cells, d] of a group with several cells.
        bucket_of: int64 [cells], the bucket of each cell.
    """

    first: Mapping[str, int]
    centres: Mapping[str, np.ndarray]
    bucket_of: np.ndarray

    @property
    def buckets(self) -> int:
        """Number of buckets."""
        return int(self.bucket_of.max(initial=-1)) + 1


def cell_count(rows: int, cell_rows: int) -> int:
    """Cells a group of so many rows is cut into at first."""
    if not is_oversized(rows, cell_rows):
        return 1
    count = math.ceil(rows / cell_rows)
    return count if count <= _FLAT_CELLS else math.ceil(rows / _COARSE_ROWS)


def plan_cells(
    blocks: Sequence[Any], rows_by_group: Mapping[str, int], cell_rows: int, num_tasks: int, seed: int
) -> CellPlan:
    """Fits the centres of every group too large for one cell.

    Args:
        blocks: Object references to tables {id, group, embedding, …}.
        rows_by_group: Rows of each group; rows of other groups are ignored.

    Memory of a fit: 64 rows a cell, so at most 262,144 vectors.
    """
    import ray

    counts = {group: cell_count(rows, cell_rows) for group, rows in sorted(rows_by_group.items())}
    rates = {
        group: min(1.0, _SAMPLE_PER_CELL * count / rows_by_group[group])
        for group, count in counts.items()
        if count > 1
    }
    centres: dict[str, np.ndarray] = {}
    if rates:
        draw, fit = ray.remote(sample_rows), ray.remote(fit_centres)
        samples = run_tasks([partial(draw.remote, block, rates, seed) for block in blocks], num_tasks)
        fitted = run_tasks(
            [partial(fit.remote, group, counts[group], seed, *samples) for group in rates], num_tasks
        )
        centres = dict(zip(rates, ray.get(fitted), strict=True))
        counts |= {group: len(found) for group, found in centres.items()}
    first = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
    expected = [rows_by_group[group] / count for group, count in counts.items() for _ in range(count)]
    return CellPlan(first, centres, _pack(np.array(expected), num_tasks))


def _pack(expected_rows: np.ndarray, num_tasks: int) -> np.ndarray:
    """Consecutive cells of about as many rows in all share a bucket."""
    total = float(expected_rows.sum())
    size = max(total / _MOST_BUCKETS, min(_BUCKET_ROWS, total / (4 * num_tasks)), 1.0)
    before = np.cumsum(expected_rows) - expected_rows
    return np.unique((before / size).astype(np.int64), return_inverse=True)[1]


def sample_rows(block: pa.Table, rates: Mapping[str, float], seed: int) -> pa.Table:
    """The rows whose hash falls under their group's rate: a sample that depends on ids alone."""
    pairs = zip(block["id"].to_pylist(), block["group"].to_pylist(), strict=True)
    return block.filter(
        pa.array([hash_of(seed, key) < rates.get(group, 0.0) for key, group in pairs], pa.bool_())
    )


def fit_centres(group: str, count: int, seed: int, *samples: pa.Table) -> np.ndarray:
    """Centres of one group from the sampled rows of all blocks."""
    filled = [sample for sample in samples if sample.num_rows]  # an empty block has no vector type
    sampled = pa.concat_tables([sample.filter(pc.field("group") == group) for sample in filled])
    return spherical_kmeans(vectors_of(sampled.sort_by("id")), count, seed)


def assign_cells(block: pa.Table, plan: CellPlan) -> list[pa.Table]:
    """The rows of a block, with their `cell`, divided among the buckets."""
    cells = np.full(block.num_rows, -1, dtype=np.int64)
    for group, rows in _rows_by_group(block):
        cells[rows] = plan.first.get(group, -1)
        if group in plan.centres:
            labels, _ = nearest(vectors_of(block.take(pa.array(rows))), plan.centres[group])
            cells[rows] += labels
    planned = cells >= 0
    block = block.append_column("cell", pa.array(cells)).filter(pa.array(planned))
    return split_by_bucket(block, plan.bucket_of[cells[planned]], plan.buckets)


def _rows_by_group(block: pa.Table) -> list[tuple[str, np.ndarray]]:
    """The groups in a block and the rows of each, ascending: a plan may have thousands of other groups."""
    groups = block["group"].combine_chunks().dictionary_encode()
    numbers = groups.indices.to_numpy()
    order = np.argsort(numbers, kind="stable")
    edges = np.searchsorted(numbers[order], np.arange(len(groups.dictionary) + 1))
    rows = [order[start:stop] for start, stop in itertools.pairwise(edges.tolist())]
    return list(zip(groups.dictionary.to_pylist(), rows, strict=True))


def split_by_bucket(block: pa.Table, buckets: np.ndarray, count: int) -> list[pa.Table]:
    """The rows of each of `count` buckets, in their order; `buckets` int64 [rows] is that of each row."""
    order = np.argsort(buckets, kind="stable")
    edges = np.searchsorted(buckets[order], np.arange(count + 1))
    block = block.take(pa.array(order))
    return [block.slice(start, stop - start) for start, stop in itertools.pairwise(edges.tolist())]


def shuffle(
    blocks: Sequence[Any], plan: Any, num_tasks: int, assign: Callable[..., list[pa.Table]] = assign_cells
) -> list[list[Any]]:
    """The pieces of every bucket, as object references; `how` divides a block as the plan has it."""
    import ray

    shared, task = ray.put(plan), remote_with_returns(plan.buckets, assign)
    divided = run_tasks([partial(task.remote, block, shared) for block in blocks], num_tasks)
    return [[as_refs(pieces)[bucket] for pieces in divided] for bucket in range(plan.buckets)]
