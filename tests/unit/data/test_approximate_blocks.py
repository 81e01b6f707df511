"""Blocks and buckets of the approximate search that hold no row."""

from __future__ import annotations

import numpy as np
from stage_rows import put_part

from lm_mixup.data.approximate import (
    found_between,
    found_table,
    gather_bucket,
    load_block,
)
from lm_mixup.data.cells import CellPlan, divide, sample_rows
from lm_mixup.data.embed import embedding_table
from lm_mixup.runs import RunDir

EMPTY = embedding_table([], np.zeros((0, 4), np.float32))


def found(own: list[int]):
    index = np.array(own, np.int64)
    return found_table(index, index[:, None] * [10, 11], (index[:, None] / [8, 16]).astype(np.float32))


def test_a_block_without_rows_has_no_neighbours():
    near, alike = found_between([found([]), found([])], 7, 7, 2)
    assert (near.shape, near.dtype) == ((0, 2), np.int64)
    assert (alike.shape, alike.dtype) == ((0, 2), np.float32)


def test_rows_of_a_part_are_taken_out_of_its_block_in_order():
    near, alike = found_between([found([5, 2]), found([3]), found([]), found([4, 9])], 3, 6, 2)
    assert near.tolist() == [[30, 33], [40, 44], [50, 55]]
    assert alike.tolist() == [[3 / 8, 3 / 16], [4 / 8, 4 / 16], [5 / 8, 5 / 16]]


def test_a_block_without_rows_goes_through_the_shuffle(tmp_path):
    stage = RunDir(tmp_path).stage("embed")
    for part in range(2):
        put_part(stage, part, EMPTY)
    block = load_block(stage, stage.parts(), 12)
    assert block.num_rows == sample_rows(block, {"": 1.0}, 0).num_rows == 0
    plan = CellPlan({"": 0}, {"": np.eye(4, dtype=np.float32)[:2]}, np.array([0, 1]))
    pieces = divide(block, plan)
    assert [piece.num_rows for piece in pieces] == [0, 0]
    assert gather_bucket(*pieces).num_rows == 0
