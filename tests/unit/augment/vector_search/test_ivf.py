"""Blocks and buckets of the approximate search that hold no row."""

from __future__ import annotations

import numpy as np
from stage_rows import put_part

from lm_mixup.augment.embed import embedding_table
from lm_mixup.augment.vector_search.ivf import gather_bucket, load_block, merge_pieces, neighbors_by_index
from lm_mixup.augment.vector_search.ivf_centroids import IvfIndex, assign_cells, fit_fine_centres
from lm_mixup.augment.vector_search.shuffle import sample_rows
from lm_mixup.core.run_dir import RunDir

EMPTY = embedding_table([], np.zeros((0, 4), np.float32))


def found(own: list[int]):
    index = np.array(own, np.int64)
    return neighbors_by_index(index, index[:, None] * [10, 11], (index[:, None] / [8, 16]).astype(np.float32))


def test_a_block_without_rows_has_no_neighbours():
    near, alike = merge_pieces(found([]), found([]))
    assert (near.shape, near.dtype) == ((0, 2), np.int64)
    assert (alike.shape, alike.dtype) == ((0, 2), np.float32)


def test_rows_of_a_block_come_in_order_out_of_all_buckets():
    near, alike = merge_pieces(found([5, 2]), found([3]), found([]), found([4]))
    assert near.tolist() == [[20, 22], [30, 33], [40, 44], [50, 55]]
    assert alike.tolist() == [[n / 8, n / 16] for n in (2, 3, 4, 5)]


def test_a_block_without_rows_goes_through_the_shuffle(tmp_path):
    stage = RunDir(tmp_path).stage("embed")
    for part in range(2):
        put_part(stage, part, EMPTY)
    block, ids = load_block(stage, stage.parts(), 12)
    assert block.num_rows == len(ids) == sample_rows(block, {"": 1.0}, 0).num_rows == 0
    centres = np.eye(4, dtype=np.float32)[:2]
    pieces = assign_cells(block, IvfIndex(centres[:1], centres, np.array([0, 2]), np.array([0, 1])))
    assert [piece.num_rows for piece in pieces] == [0, 0]
    assert gather_bucket(*pieces).num_rows == 0
    assert fit_fine_centres(0, *pieces) == {}


def tree(cells: int, below: int) -> IvfIndex:
    """Random cells below coarse ones that are their means."""
    fine = np.random.default_rng(0).standard_normal((cells, 16)).astype(np.float32)
    fine /= np.linalg.norm(fine, axis=1, keepdims=True)
    starts = np.arange(0, cells + 1, below)
    return IvfIndex(np.add.reduceat(fine, starts[:-1]) / below, fine, starts, np.zeros(cells, np.int64))


def test_the_nearest_cells_are_those_below_the_nearest_coarse_ones(monkeypatch):
    monkeypatch.setattr("lm_mixup.augment.vector_search.ivf_centroids._COARSE_PROBES", 3)
    made = tree(60, 10)
    queries = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    found = made.nearest(queries, 8)
    for query, cells in zip(queries, found.tolist(), strict=True):
        roots = np.argsort(-(made.coarse @ query))[:3]
        below = np.concatenate([np.arange(10 * root, 10 * root + 10) for root in roots])
        assert set(cells) == set(below[np.argsort(-(made.fine[below] @ query))[:8]].tolist())
    more = made.nearest(queries, 50)  # than lie below three coarse cells
    assert more.shape == (40, 30) or ((more >= 0).sum(axis=1) == 30).all()


def test_all_coarse_cells_looked_through_are_a_flat_table():
    made = tree(60, 10)
    flat = IvfIndex(made.fine[:1], made.fine, np.array([0, 60]), made.bucket_of)
    queries = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    assert (np.sort(made.nearest(queries, 7)) == np.sort(flat.nearest(queries, 7))).all()
    assert (made.nearest(queries, 1) == flat.nearest(queries, 1)).all()
