"""Size bounds, the floor, termination and independence of the order, on generated cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.augment.clustering.cohesion import Bounds, centre_cosines, clusters_of
from lm_mixup.augment.clustering.size_bounded import bounded_clusters, greedy_capacity, residual_reasons


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def topics(rows: int, topic_rows: int, width: int, seed: int, spread: float = 0.6) -> np.ndarray:
    """Rows about random topics, `topic_rows` a topic on average."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(rows // topic_rows, 1), width))
    chosen = generator.integers(0, len(centres), rows)
    return unit(centres[chosen] + spread * generator.standard_normal((rows, width)))


@st.composite
def cells(draw):
    rows, width = draw(st.integers(0, 60)), draw(st.integers(2, 16))
    kind = draw(st.sampled_from(["topics", "random", "duplicates"]))
    seed = draw(st.integers(0, 10_000))
    if not rows:
        return np.zeros((0, width), np.float32)
    vectors = topics(rows, draw(st.integers(1, 12)), width, seed, spread=5.0 if kind == "random" else 0.5)
    return (
        vectors[np.random.default_rng(seed).integers(0, rows, rows) // 4] if kind == "duplicates" else vectors
    )


@st.composite
def bounds_of(draw):
    low = draw(st.integers(1, 7))
    return Bounds(low, draw(st.integers(low, 8)), draw(st.sampled_from([-1.0, 0.0, 0.3, 0.8])))


@settings(max_examples=200, deadline=None)
@given(cells(), bounds_of())
def test_bounds_hold_and_every_row_is_in_one_cluster_or_the_residual(vectors, bounds):
    labels = bounded_clusters(vectors, bounds)
    assert labels.shape == (len(vectors),)
    sizes = np.bincount(labels[labels >= 0]) if (labels >= 0).any() else np.array([], int)
    assert ((sizes >= bounds.min_size) & (sizes <= bounds.max_size)).all()  # numbers without gaps, too
    for members in clusters_of(labels):
        within = vectors[members].astype(np.float64) @ vectors[members].T.astype(np.float64)
        if len(members) > 1:
            kinship = (within.sum(axis=1) - within.diagonal()) / (len(members) - 1)
            assert kinship.min() >= bounds.min_similarity - 1e-5
    assert set(residual_reasons(vectors, labels, bounds)) == set(np.flatnonzero(labels < 0).tolist())


@settings(max_examples=40, deadline=None)
@given(cells(), bounds_of())
def test_the_same_cell_gives_the_same_clusters(vectors, bounds):
    first, again = (bounded_clusters(vectors, bounds) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(1, 8), st.integers(1, 40), st.integers(0, 1000))
def test_greedy_capacity_never_overfills_and_misses_no_chance(rows, centres, room, seed):
    generator = np.random.default_rng(seed)
    cosines = generator.standard_normal((rows, centres)).astype(np.float32)
    capacity = generator.integers(0, room + 1, centres)
    choice = greedy_capacity(cosines, capacity)
    taken = np.bincount(choice[choice >= 0], minlength=centres)
    assert (taken <= capacity).all()
    if (choice < 0).any():  # all centres are asked for (fewer than 16), so only full ones refuse
        assert (taken == capacity).all()


def test_greedy_capacity_by_hand():
    cosines = np.array([[0.9, 0.8], [0.95, 0.1], [0.7, 0.6], [0.2, -np.inf]], dtype=np.float32)
    assert greedy_capacity(cosines, np.array([2, 1])).tolist() == [0, 0, 1, -1]


@pytest.mark.parametrize(
    ("rows", "low", "high", "sizes", "left"),
    [
        (0, 2, 5, [], 0),
        (1, 2, 5, [], 1),
        (1, 1, 5, [1], 0),
        (2, 2, 5, [2], 0),
        (7, 4, 5, [5], 2),
        (8, 4, 5, [4, 4], 0),
        (9, 4, 5, [4, 5], 0),
        (10, 3, 3, [3, 3, 3], 1),
        (12, 5, 5, [5, 5], 2),
        (41, 20, 20, [20, 20], 1),
    ],
)
def test_sizes_where_the_official_code_never_ends(rows, low, high, sizes, left):
    vectors = (
        unit(1.0 + 0.05 * np.random.default_rng(0).standard_normal((rows, 8))) if rows else np.zeros((0, 8))
    )
    labels = bounded_clusters(vectors.astype(np.float32), Bounds(low, high, 0.3))
    assert sorted(np.bincount(labels[labels >= 0]).tolist()) == sizes
    assert (labels < 0).sum() == left


def test_a_remainder_is_named_too_small_and_a_stranger_has_no_kin():
    kin = unit(1.0 + 0.05 * np.random.default_rng(0).standard_normal((4, 8)))
    stranger = np.zeros((1, 8), np.float32)
    stranger[0, :2] = [np.sqrt(0.5), -np.sqrt(0.5)]
    vectors = np.concatenate([kin, stranger])
    bounds = Bounds(3, 3, 0.3)
    labels = bounded_clusters(vectors, bounds)
    reasons = residual_reasons(vectors, labels, bounds)
    assert sorted(reasons.values()) == ["cluster_too_small", "no_kin"]
    assert reasons[4] == "no_kin"


def test_two_orthogonal_rows_are_no_pair_although_each_is_near_their_centre():
    labels = bounded_clusters(np.eye(2, dtype=np.float32), Bounds(2, 5, 0.3))
    assert labels.tolist() == [-1, -1]


def test_strangers_are_not_forced_in():
    """The official code has no slack: capacities sum to N, and the tail goes to any cluster with room."""
    family = topics(200, 5, 64, seed=1)
    strangers = np.zeros((20, 128), np.float32)
    strangers[np.arange(20), 64 + np.arange(20)] = 1.0
    vectors = np.concatenate([np.pad(family, ((0, 0), (0, 64))), strangers])
    labels = bounded_clusters(vectors, Bounds(2, 5, 0.3))
    assert (labels[200:] == -1).all()
    assert (labels[:200] >= 0).mean() > 0.9
    assert np.nanpercentile(centre_cosines(vectors, labels), 1) > 0.57


def test_equal_rows_fill_clusters():
    labels = bounded_clusters(np.repeat(unit(np.ones((1, 16))), 500, axis=0), Bounds(2, 5, 0.3))
    assert (labels >= 0).all()
    assert np.bincount(labels).mean() > 3


def test_topics_are_found():
    """40 tight topics of exactly 4 rows: a cluster holds one topic."""
    vectors = unit(
        np.repeat(np.eye(40), 4, axis=0) + 0.02 * np.random.default_rng(0).standard_normal((160, 40))
    )
    labels = bounded_clusters(vectors, Bounds(2, 4, 0.3))
    assert (labels >= 0).all()
    assert all(len({row // 4 for row in members}) == 1 for members in clusters_of(labels).copy())


def test_bounds_are_checked():
    with pytest.raises(ValueError, match="min_size"):
        Bounds(3, 2, 0.3)
