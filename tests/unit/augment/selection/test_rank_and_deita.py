"""Long-tail scores by hand, rankings, budgets and quotas, and Deita's greedy pass against a plain one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.augment.selection import deita
from lm_mixup.augment.selection.deita import take_diverse
from lm_mixup.augment.selection.rank import budget_rows, fill, quotas, rank, strata_quotas
from lm_mixup.augment.vector_search.neighbor_table import listed_distance, long_tail_scores, mean_distance
from lm_mixup.core.draws import hash_of, index_in_group

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
            "overall": pa.array([10, 9, 10, 5], pa.int8()),
            "complexity": pa.array([5, 6, 10, 9], pa.int8()),
            "perplexity": [3.0, 1.5, 90.0, 8.0],
        }
    )
    return table.take(pa.array(order))


def ranked(table: pa.Table, method: str, seed: int = 0, take: str = "mid") -> list[str]:
    return table.take(pa.array(rank(table, method, seed, take)))["id"].to_pylist()


def test_rankings_by_hand():
    assert ranked(candidates(), "long_tail") == ["b", "c", "d", "a"]
    assert ranked(candidates(), "longest") == ["c", "a", "d", "b"]
    by_score = ranked(candidates(), "score")
    assert set(by_score[:2]) == {"b", "d"}
    assert by_score == sorted(by_score, key=lambda key: (key in "ac", hash_of(0, key)))


def test_rankings_of_the_baselines_by_hand():
    assert ranked(candidates(), "knn_diversity") == ["b", "c", "d", "a"]
    assert ranked(candidates(), "deita") == ["c", "b", "a", "d"]  # 100, 54, 50, 45
    assert ranked(candidates(), "ds2") == ["b", "d", "c", "a"]
    assert ranked(candidates(), "alpagasus", 3) == ranked(candidates(), "random", 3)
    assert ranked(candidates(), "perplexity", take="low") == ["b", "a", "d", "c"]
    assert ranked(candidates(), "perplexity", take="high") == ["c", "d", "a", "b"]
    middle = ranked(candidates(), "perplexity", take="mid")
    assert (set(middle[:2]), set(middle[2:])) == ({"a", "d"}, {"b", "c"})


def test_products_of_ratings_do_not_overflow():
    table = candidates().set_column(6, "complexity", pa.array([13, 100, 1, 1], pa.int8()))
    assert ranked(table, "deita") == ["b", "a", "c", "d"]


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=30), st.data())
def test_mid_takes_a_run_of_perplexities_about_the_median(values, data):
    table = pa.table({"id": [f"r{i}" for i in range(len(values))], "perplexity": values})
    count = data.draw(st.integers(1, len(values)))
    taken = sorted(
        table.take(pa.array(rank(table, "perplexity", 0, "mid")[:count]))["perplexity"].to_pylist()
    )
    below = (len(values) - count) / 2
    runs = {int(np.floor(below)), int(np.ceil(below))}
    assert taken in [sorted(values)[start : start + count] for start in runs]


def test_the_rating_before_rounding_tells_equal_scores_apart_and_never_outdoes_a_score():
    table = candidates().set_column(2, "expected", pa.array([9.9, 8.6, 8.5, 9.2], pa.float32()))
    assert ranked(table, "score", 0) == ranked(table, "score", 1) == ["d", "b", "a", "c"]
    table = table.set_column(2, "expected", pa.array([8.5, None, None, 9.2], pa.float32()))
    assert ranked(table, "score") == ["d", "b", "a", "c"]


@pytest.mark.parametrize(
    "method",
    ["long_tail", "score", "random", "longest", "knn_diversity", "alpagasus", "deita", "ds2", "perplexity"],
)
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


def test_listed_neighbours_give_what_a_search_gives():
    lists = pa.array([[0.5, 0.0, -1.0], [0.9], []], pa.list_(pa.float32()))
    np.testing.assert_allclose(listed_distance(lists, 2), [0.75, 0.1, 1.0], atol=1e-6)
    np.testing.assert_allclose(listed_distance(lists.slice(1), 2), [0.1, 1.0], atol=1e-6)
    assert listed_distance(lists, 2).dtype == np.float32


@pytest.mark.parametrize(
    ("counts", "budget", "shares"),
    [
        ([60, 30, 10], 10, [6, 3, 1]),
        ([50, 30, 20], 9, [4, 3, 2]),  # 4.5, 2.7, 1.8: remainders 0.7 and 0.8 go first
        ([1, 1, 1], 2, [1, 1, 0]),
        ([2, 5, 2], 3, [1, 2, 0]),
        ([3, 0, 1], 8, [6, 0, 2]),
        ([0, 0], 5, [0, 0]),
        ([], 5, []),
    ],
)
def test_largest_remainders_by_hand(counts, budget, shares):
    assert strata_quotas(np.array(counts, dtype=np.int64), budget).tolist() == shares


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=20), st.integers(0, 10**8))
def test_strata_quotas_add_up_and_are_nearly_in_proportion(counts, budget):
    shares = strata_quotas(np.array(counts), budget)
    total = sum(counts)
    assert shares.sum() == (budget if total else 0)
    for share, count in zip(shares.tolist(), counts, strict=True):
        assert not total or abs(share - budget * count / total) < 1 + 1e-6
        assert budget > total or share <= count


@given(
    st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 12), min_size=4, max_size=4), st.data()
)
def test_fill_gives_each_stratum_its_first_rows(strata, room, data):
    order = data.draw(st.permutations(range(len(strata))))
    left, expected = list(room), []
    for row in order:
        if left[strata[row]]:
            left[strata[row]] -= 1
            expected.append(row)
    found = fill(np.array(order, np.int64), np.array(strata, np.int64), np.array(room))
    assert found.tolist() == sorted(expected)


@given(st.lists(st.integers(0, 6), max_size=40).map(sorted))
def test_turns_count_within_a_group(groups):
    expected = [groups[:place].count(group) for place, group in enumerate(groups)]
    assert index_in_group(np.array(groups, np.int64)).tolist() == expected


@given(
    angles=st.lists(st.integers(0, 35), max_size=40),
    before=st.lists(st.integers(0, 35), max_size=3),
    room=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    threshold=st.sampled_from([0.3, 0.7, 0.9, 0.99]),
    block=st.sampled_from([1, 3, 256]),
    seed=st.integers(0, 5),
)
def test_deita_is_the_greedy_pass_it_says(angles, before, room, threshold, block, seed):
    """Multiples of ten degrees: no cosine lies at a threshold."""
    vectors, there = (_on_circle(some) for some in (angles, before))
    order = np.random.default_rng(seed).permutation(len(angles))
    strata = np.arange(len(angles)) % 2
    taken, alike, left = [], 0, list(room)
    for row in order.tolist():
        if not left[strata[row]]:
            continue
        if any(vectors[row] @ other >= threshold for other in [*there, *vectors[taken]]):
            alike += 1
            continue
        taken.append(row)
        left[strata[row]] -= 1
    sizes = {"_BLOCK": block, "WINDOW": 2 * block}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(deita, name, value)
        found = take_diverse(
            order, strata, np.array(room), lambda rows: vectors[rows], threshold, there if before else None
        )
    assert found.rows.tolist() == sorted(taken)
    assert found.too_similar == alike
    np.testing.assert_array_equal(found.vectors.reshape(-1, 2), np.concatenate([there, vectors[taken]]))


def _on_circle(tens) -> np.ndarray:
    angles = np.deg2rad(10.0 * np.array(tens, dtype=float))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32).reshape(-1, 2)


def test_deita_asks_for_no_more_vectors_than_it_needs():
    asked = []

    def fetch(rows):
        asked.append(len(rows))
        return np.eye(64, dtype=np.float32)[rows]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deita, "WINDOW", 8)
        found = take_diverse(np.arange(64), np.zeros(64, np.int64), np.array([10]), fetch, 0.9)
    assert found.rows.tolist() == list(range(10))
    assert asked == [8, 8]


def test_deita_compares_no_more_rows_once_it_is_full(monkeypatch):
    compared, similarity = [], deita._Taken.similarity

    def counted(taken, block):
        compared.append(len(block))
        return similarity(taken, block)

    monkeypatch.setattr(deita, "_BLOCK", 4)
    monkeypatch.setattr(deita._Taken, "similarity", counted)
    vectors = np.eye(64, dtype=np.float32)
    found = take_diverse(
        np.arange(64), np.zeros(64, np.int64), np.array([10]), lambda rows: vectors[rows], 0.9
    )
    assert found.rows.tolist() == list(range(10))
    assert compared == [4, 4, 4]


def test_faithfulness_takes_its_share_of_the_order():
    table = candidates().append_column("faithful", pa.array([1.0, 0.2, 0.6, 0.4], pa.float32()))
    order = {
        weight: rank(table, "long_tail", 0, faithfulness_weight=weight).tolist() for weight in (0, 0.5, 1)
    }
    # places by long tail: b 1, c 2/3, d 1/3, a 0
    assert order == {0: [1, 2, 3, 0], 0.5: [2, 1, 0, 3], 1: [0, 2, 3, 1]}
