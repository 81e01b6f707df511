"""Cells: a partition, none oversized, for every kind of data; and centres that are where the rows are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.augment.vector_search.kmeans import is_oversized, spherical_kmeans, split_cell
from lm_mixup.augment.vector_search.shuffle import cell_count
from lm_mixup.core.nearest import nearest


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(16, 80), st.booleans(), st.integers(0, 100))
def test_cells_partition_the_rows_and_none_is_oversized(rows, cell_rows, skewed, seed):
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((rows, 6))
    if skewed:  # nearly all rows in one place: a single split leaves one cell far too large
        vectors[: rows * 9 // 10] = vectors[0] + 1e-3 * vectors[: rows * 9 // 10]
    cells = split_cell(unit(vectors), cell_rows, seed)
    assert sorted(np.concatenate(cells).tolist()) == list(range(rows))
    assert all((np.diff(cell) > 0).all() for cell in cells)
    assert not any(is_oversized(len(cell), cell_rows) for cell in cells)


def test_equal_rows_can_be_cut_too():
    cells = split_cell(np.repeat(unit(np.ones((1, 4))), 1000, axis=0), 100, seed=0)
    assert sorted(np.concatenate(cells).tolist()) == list(range(1000))
    assert max(map(len, cells)) <= 150


def test_centres_are_the_means_of_their_rows_and_none_is_empty():
    generator = np.random.default_rng(0)
    vectors = unit(np.repeat(np.eye(8), 30, axis=0) + 0.05 * generator.standard_normal((240, 8)))
    centres = spherical_kmeans(vectors, 8, seed=3)
    labels, cosines = nearest(vectors, centres)
    np.testing.assert_array_equal(labels, (vectors @ centres.T).argmax(axis=1))
    means = unit(np.stack([vectors[labels == label].mean(axis=0) for label in range(8)]))
    np.testing.assert_allclose(centres, means, atol=1e-3)
    at_random = nearest(vectors, unit(generator.standard_normal((8, 8))))[1]
    assert cosines.mean() > at_random.mean() + 0.1


def test_no_more_centres_than_rows():
    assert spherical_kmeans(unit(np.eye(3)), 9, seed=0).shape == (3, 3)


@pytest.mark.parametrize(
    ("rows", "cells"), [(1, 1), (1536, 1), (1537, 2), (100_000, 98), (4_194_304, 4096), (100_000_000, 1526)]
)
def test_number_of_cells(rows, cells):
    assert cell_count(rows, 1024) == cells
