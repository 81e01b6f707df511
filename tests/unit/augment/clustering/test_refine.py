"""Moves and swaps: known answers by hand; the objective never falls, and no bound is broken."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.augment.clustering.cohesion import Bounds, Clusters, centre_cosines, kinship_of, renumber
from lm_mixup.augment.clustering.refine import refine


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def topics(*topic_of_row: int) -> np.ndarray:
    """Rows of orthogonal topics, equal within one."""
    return np.eye(8, dtype=np.float32)[list(topic_of_row)]


def test_two_rows_in_each_others_cluster_change_places():
    vectors = topics(0, 0, 0, 1, 1, 1)
    labels = refine(vectors @ vectors.T, np.array([0, 0, 1, 0, 1, 1]), Bounds(3, 3, -1.0))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_stranger_moves_to_its_kin_if_there_is_room_and_it_can_be_spared():
    vectors = topics(0, 0, 1, 1, 1, 1)
    gram, labels = vectors @ vectors.T, np.array([0, 0, 0, 1, 1, 1])
    assert refine(gram, labels, Bounds(2, 4, -1.0)).tolist() == [0, 0, 1, 1, 1, 1]
    assert refine(gram, labels, Bounds(2, 3, -1.0)).tolist() == labels.tolist()  # no room
    assert refine(gram, labels, Bounds(3, 4, -1.0)).tolist() == labels.tolist()  # not to be spared


def test_a_change_that_would_break_the_floor_of_another_row_is_not_made():
    """Row 2 would gain by going to rows 3 and 4; rows 0 and 1, left behind, are strangers to each other."""
    middle = [0.35, 0.35, 0.87, 0]
    vectors = unit(np.array([[1, 0, 0, 0], [0, 1, 0, 0], middle, [0, 0, 1, 0.1], [0, 0, 1, -0.1]]))
    gram, labels = vectors @ vectors.T, np.array([0, 0, 0, 1, 1])
    assert kinship_of(gram, labels).min() > 0.15
    assert refine(gram, labels, Bounds(2, 3, 0.15)).tolist() == labels.tolist()
    assert refine(gram, labels, Bounds(2, 3, -1.0)).tolist() == [0, 0, 1, 1, 1]


def test_rows_of_the_residual_stay_out():
    vectors = topics(0, 0, 0, 1, 1, 1)
    labels = np.array([0, 0, -1, 1, 1, -1])
    assert refine(vectors @ vectors.T, labels, Bounds(2, 5, -1.0)).tolist() == labels.tolist()
    nobody = np.full(6, -1)
    assert refine(vectors @ vectors.T, nobody, Bounds(1, 5, -1.0)).tolist() == nobody.tolist()


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 50), st.integers(2, 10), st.integers(1, 12), st.integers(0, 10_000), st.data())
def test_the_objective_never_falls_and_bounds_are_kept(rows, width, count, seed, data):
    generator = np.random.default_rng(seed)
    vectors = unit(generator.standard_normal((rows, width)) + data.draw(st.sampled_from([0.0, 1.0])))
    gram = vectors @ vectors.T
    labels = renumber(generator.integers(-1, count, rows))
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    kinship = kinship_of(gram, labels)
    # The tightest bounds that these labels keep.
    bounds = Bounds(max(int(sizes.min()), 1), max(int(sizes.max()), 1), float(kinship.min()))
    better = refine(gram, labels, bounds)
    assert ((better < 0) == (labels < 0)).all()
    if (labels >= 0).any():
        after = np.bincount(better[better >= 0])
        assert len(after) == len(sizes)
        assert after.min() >= bounds.min_size
        assert after.max() <= bounds.max_size
        assert kinship_of(gram, better).min() >= bounds.min_similarity - 1e-6
    objective, before = (np.nansum(centre_cosines(vectors, found)) for found in (better, labels))
    assert objective >= before - 1e-4
    if not np.array_equal(better, labels):
        assert objective > before
    np.testing.assert_array_equal(better, refine(gram, labels, bounds))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 1000))
def test_lengths_are_the_cosines_to_the_centre_added_up(rows, count, seed):
    generator = np.random.default_rng(seed)
    vectors = unit(generator.standard_normal((rows, 6)))
    labels = renumber(generator.integers(0, count, rows))
    clusters = Clusters.of_labels(vectors @ vectors.T, labels)
    cosines = centre_cosines(vectors, labels)
    expected = [cosines[labels == label].sum() for label in range(labels.max() + 1)]
    np.testing.assert_allclose(clusters.lengths, expected, atol=1e-3)
    np.testing.assert_array_equal(clusters.sizes, np.bincount(labels))
