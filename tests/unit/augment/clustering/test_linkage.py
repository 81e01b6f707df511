"""Average linkage under a largest size: against scipy where no size binds, by hand, and what stalls it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cut_tree, linkage

from lm_mixup.augment.clustering.linkage import bounded_linkage


def gram_of(rows: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one[:, None] == one, other[:, None] == other)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.integers(2, 8), st.integers(0, 10_000), st.data())
def test_without_bounds_it_is_the_average_linkage_of_scipy(rows, width, seed, data):
    gram, count = gram_of(rows, width, seed), data.draw(st.integers(1, rows))
    # From 2, not from 1: a cosine of 1 + 1e-7 would be a negative distance, which scipy refuses.
    tree = linkage(2.0 - gram[np.triu_indices(rows, 1)].astype(np.float64), "average")
    found = bounded_linkage(gram, max_size=rows, min_similarity=-1.0, count=count)
    assert same_partition(found, cut_tree(tree, count).ravel())


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 10_000), st.integers(1, 60), st.booleans())
def test_no_cluster_is_too_large_and_no_more_are_merged_than_asked(rows, largest, seed, count, equal):
    gram = np.ones((rows, rows), np.float32) if equal else gram_of(rows, 4, seed)
    sizes = np.bincount(bounded_linkage(gram, largest, 0.2, count))
    assert sizes.sum() == rows
    assert sizes.min() >= 1
    assert sizes.max() <= largest
    assert len(sizes) >= min(count, rows)


def test_a_largest_size_by_hand():
    """Rows 0 and 1 are nearest, 2 would be the third, but two are the most: it goes with 3."""
    gram = np.array(
        [[1, 0.9, 0.8, 0.1], [0.9, 1, 0.8, 0.1], [0.8, 0.8, 1, 0.4], [0.1, 0.1, 0.4, 1]], np.float32
    )
    assert bounded_linkage(gram, 2, 0.3, 1).tolist() == [0, 0, 1, 1]
    assert bounded_linkage(gram, 2, 0.5, 1).tolist() == [0, 0, 1, 2]  # not that near
    assert bounded_linkage(gram, 2, 0.3, 3).tolist() == [0, 0, 1, 2]  # no more asked for
    assert bounded_linkage(gram, 3, 0.3, 1).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("kind", ["equal", "chain"])
def test_what_has_few_mutual_pairs_is_merged_as_far(kind):
    """Equal rows all name the first as nearest, rows ever farther apart name the one before."""
    angles = np.zeros(600) if kind == "equal" else np.arange(600) ** 1.5 * 1e-5
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    sizes = np.bincount(bounded_linkage(vectors @ vectors.T, 5, 0.3, 150))
    assert len(sizes) <= 200
    assert sizes.max() <= 5
