"""A block's rows divided among cells and buckets, by hand and without Ray."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lm_mixup.augment.embed import embedding_table
from lm_mixup.augment.vector_search.shuffle import CellPlan, assign_cells

EAST, NORTH = np.eye(2, dtype=np.float32)


class LookedUp(dict):
    """Tells which keys were asked for; going through all of them is an error."""

    def __init__(self, **values: int) -> None:
        super().__init__(values)
        self.asked: list[str] = []

    def get(self, key, default=None):
        self.asked.append(key)
        return super().get(key, default)

    def __iter__(self):
        raise AssertionError("all groups of the plan were gone through")

    items = keys = values = __iter__


def block_of(groups: list[str], vectors: list[np.ndarray]) -> pa.Table:
    """Rows in two chunks, as those of several parts are."""
    rows = embedding_table([f"r{n}" for n in range(len(groups))], np.array(vectors).reshape(-1, 2))
    rows = rows.append_column("group", pa.array(groups, pa.string()))
    return pa.concat_tables([rows.slice(0, 2), rows.slice(2)])


def test_a_block_looks_at_its_own_groups_alone():
    """Group b has two cells, one to the east and one to the north; c is not in the plan."""
    first = LookedUp(a=0, b=1, d=3, e=4)
    plan = CellPlan(first, {"b": np.stack([EAST, NORTH])}, np.array([0, 0, 1, 1, 2]))
    groups = ["b", "a", "c", "b", "a", "b", "d"]
    pieces = assign_cells(block_of(groups, [NORTH, NORTH, EAST, EAST, EAST, NORTH, EAST]), plan)
    found = [list(zip(p["id"].to_pylist(), p["cell"].to_pylist(), strict=True)) for p in pieces]
    assert found == [[("r1", 0), ("r3", 1), ("r4", 0)], [("r0", 2), ("r5", 2), ("r6", 3)], []]
    assert sorted(first.asked) == ["a", "b", "c", "d"]


def test_an_empty_block_gives_every_bucket_an_empty_piece():
    plan = CellPlan({"b": 0}, {"b": np.stack([EAST, NORTH])}, np.array([0, 1]))
    assert [piece.num_rows for piece in assign_cells(block_of([], []), plan)] == [0, 0]
