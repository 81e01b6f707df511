"""Long-tail scores by hand, rankings, budgets and quotas."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.data.longtail import long_tail_scores, mean_distance
from lm_mixup.data.rankings import budget_rows, hash_of, quotas, rank

ANGLES = np.deg2rad([0, 60, 90, 180])
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def test_long_tail_by_hand():
    """Rows at 0°, 60°, 90°, 180°: the two nearest are (60, 90), (30, 60), (30, 90), (90, 120) degrees off."""
    c30 = np.sqrt(3) / 2
    expected = [(0.5 + 1) / 2, (1 - c30 + 0.5) / 2, (1 - c30 + 1) / 2, (1 + 1.5) / 2]
    np.testing.assert_allclose(long_tail_scores(CIRCLE, 2), expected, atol=1e-6)


def test_long_tail_uses_all_others_where_there_are_no_more_than_k():
    np.testing.assert_allclose(long_tail_scores(CIRCLE, 3), long_tail_scores(CIRCLE, 15))
    assert long_tail_scores(CIRCLE[[0, 3]], 15).tolist() == pytest.approx([2.0, 2.0])


def test_a_row_alone_and_no_rows():
    assert long_tail_scores(CIRCLE[:1], 15).tolist() == [1.0]
    assert long_tail_scores(CIRCLE[:0], 15).tolist() == []


def test_duplicates_count_as_neighbours():
    scores = long_tail_scores(CIRCLE[[0, 0, 2]], 1)
    np.testing.assert_allclose(scores, [0, 0, 1], atol=1e-6)
    assert scores.dtype == np.float32


def test_rounding_never_gives_a_negative_distance():
    assert mean_distance(np.array([[1.0000001]], dtype=np.float32)).tolist() == [0.0]


def candidates(order=(0, 1, 2, 3)) -> pa.Table:
    table = pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "score": pa.array([4, 5, 4, 5], pa.int8()),
            "expected": pa.array([None] * 4, pa.float32()),
            "length": [30, 10, 40, 20],
            "long_tail": pa.array([0.1, 0.4, 0.3, 0.2], pa.float32()),
        }
    )
    return table.take(pa.array(order))


def ranked(table: pa.Table, method: str, seed: int = 0) -> list[str]:
    return table.take(pa.array(rank(table, method, seed)))["id"].to_pylist()


def test_rankings_by_hand():
    assert ranked(candidates(), "long_tail") == ["b", "c", "d", "a"]
    assert ranked(candidates(), "longest") == ["c", "a", "d", "b"]
    by_score = ranked(candidates(), "score")
    assert set(by_score[:2]) == {"b", "d"}
    assert by_score == sorted(by_score, key=lambda key: (key in "ac", hash_of(0, key)))


def test_the_rating_before_rounding_tells_equal_scores_apart_and_never_outdoes_a_score():
    table = candidates().set_column(2, "expected", pa.array([9.9, 8.6, 8.5, 9.2], pa.float32()))
    assert ranked(table, "score", 0) == ranked(table, "score", 1) == ["d", "b", "a", "c"]
    table = table.set_column(2, "expected", pa.array([8.5, None, None, 9.2], pa.float32()))
    assert ranked(table, "score") == ["d", "b", "a", "c"]


@pytest.mark.parametrize("method", ["long_tail", "score", "random", "longest"])
@given(order=st.permutations(range(4)), seed=st.integers(0, 50))
def test_a_ranking_depends_on_the_set_of_rows_alone(method, order, seed):
    assert ranked(candidates(order), method, seed) == ranked(candidates(), method, seed)


def test_random_is_a_shuffle_that_the_seed_decides():
    table = pa.table({"id": [f"row{index}" for index in range(200)]})
    first, again, other = ranked(table, "random", 1), ranked(table, "random", 1), ranked(table, "random", 2)
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(table["id"].to_pylist())


@given(st.integers(0, 10_000), st.text(max_size=5))
def test_hashes_lie_in_the_unit_interval(seed, key):
    assert 0 <= hash_of(seed, key) < 1


@pytest.mark.parametrize(
    ("budget", "pool", "rows"),
    [(10_000, 300_000, 10_000), ("3%", 300_000, 9_000), ("3.5%", 1000, 35), ("3%", 5, 1), ("100%", 7, 7)],
)
def test_budgets(budget, pool, rows):
    assert budget_rows(budget, pool) == rows


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_quotas_add_up_and_hold_the_ratio(budget, ratio):
    quota = quotas(budget, ratio)
    assert quota.distilled + quota.original == budget
    assert min(quota.distilled, quota.original) >= 0
    assert abs(quota.original - budget * ratio) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("ratio", "split"), [(0.3, (7, 3)), (0.5, (5, 5)), (0.7, (3, 7)), (0.0, (10, 0)), (1.0, (0, 10))]
)
def test_the_papers_mixes(ratio, split):
    quota = quotas(10, ratio)
    assert (quota.distilled, quota.original) == split
