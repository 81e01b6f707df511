"""The stage `neighbors` below `exact_below`: shards, cache, the table it writes."""

from __future__ import annotations

import numpy as np
import pytest
from stage_rows import put_part

from lm_mixup.augment.embed import embedding_table, vectors_of
from lm_mixup.augment.neighbors import Bank, make_work
from lm_mixup.config import NeighborsConfig
from lm_mixup.core.nearest import knn
from lm_mixup.core.run_dir import RunDir, StageDir


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute(queries, bank, k, exclude_self=False):
    similar = queries.astype(np.float64) @ bank.astype(np.float64).T
    if exclude_self:
        np.fill_diagonal(similar, -np.inf)
    order = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similar, order, axis=1)


def stage_of(tmp_path, vectors: np.ndarray, rows_per_part: int, name: str = "embed") -> StageDir:
    stage = RunDir(tmp_path).stage(name)
    ids = np.array([f"row{index:04d}" for index in range(len(vectors))])
    for part, start in enumerate(range(0, len(vectors), rows_per_part)):
        chosen = slice(start, start + rows_per_part)
        table = embedding_table([str(value) for value in ids[chosen]], vectors[chosen])
        put_part(stage, part, table)
    return stage


@pytest.mark.parametrize("shard_rows", [1, 40, 1000])
@pytest.mark.parametrize("cache_bytes", [0, 3000, 1 << 20])
def test_shards_and_cache_do_not_change_the_result(tmp_path, shard_rows, cache_bytes):
    stage = stage_of(tmp_path, unit(130, 16, 2), 20)
    vectors = np.concatenate([vectors_of(table) for table in stage.iter_parts()])
    bank = Bank(stage, shard_rows=shard_rows, cache_bytes=cache_bytes)
    for _ in range(2):  # the second pass reads what the first has cached
        indices, similarities = bank.nearest(vectors[40:60], np.arange(40, 60), 5)
        whole, values = knn(vectors, vectors, 5, exclude_self=True)
        np.testing.assert_array_equal(indices, whole[40:60])
        np.testing.assert_allclose(similarities, values[40:60], atol=1e-6)


def test_a_part_names_its_neighbours_by_id(tmp_path):
    stage = stage_of(tmp_path, unit(25, 8, 3), 10)
    work = make_work(stage, NeighborsConfig(k=4))
    tables = [work(part).rows for part in stage.parts()]
    assert [table.num_rows for table in tables] == [10, 10, 5]
    vectors = np.concatenate([vectors_of(table) for table in stage.iter_parts()])
    expected, _ = brute(vectors, vectors, 4, exclude_self=True)
    named = [row for table in tables for row in table.to_pylist()]
    for index, row in enumerate(named):
        assert row["id"] == f"row{index:04d}"
        assert row["neighbor_ids"] == [f"row{near:04d}" for near in expected[index]]
        assert row["similarities"] == sorted(row["similarities"], reverse=True)


def test_a_pool_of_one_row_has_no_neighbours(tmp_path):
    stage = stage_of(tmp_path, unit(1, 8, 3), 10)
    (row,) = make_work(stage, NeighborsConfig(k=4))(stage.parts()[0]).rows.to_pylist()
    assert row == {"id": "row0000", "neighbor_ids": [], "similarities": []}
