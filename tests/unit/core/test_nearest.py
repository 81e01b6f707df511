"""Exact neighbours against brute force: ties, self-exclusion, blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.core import nearest as module
from lm_mixup.core.nearest import SLACK, knn, nearest


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute(queries, bank, k, exclude_self=False):
    similar = queries.astype(np.float64) @ bank.astype(np.float64).T
    if exclude_self:
        np.fill_diagonal(similar, -np.inf)
    order = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similar, order, axis=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 20), st.integers(0, 1000))
def test_knn_is_brute_force(queries, rows, k, seed):
    asked, bank = unit(queries, 16, seed), unit(rows, 16, seed + 1)
    indices, similarities = knn(asked, bank, k)
    expected, values = brute(asked, bank, min(k, rows))
    assert indices.dtype == np.int64
    assert similarities.dtype == np.float32
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, values, atol=1e-5)


def test_a_row_is_not_its_own_neighbour_but_its_duplicate_is():
    bank = unit(30, 8, 0)
    bank[7] = bank[3]
    indices, similarities = knn(bank, bank, 2, exclude_self=True)
    assert not (indices == np.arange(30)[:, None]).any()
    assert (indices[3, 0], indices[7, 0]) == (7, 3)
    assert similarities[3, 0] == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 90), st.integers(1, 12), st.integers(7, 30), st.integers(0, 1000))
def test_blocks_that_serve_both_sides_give_what_one_search_does(rows, k, block, seed):
    bank = unit(rows, 16, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_mixup.core.nearest._WITHIN_BLOCK", block)
        indices, similarities = knn(bank, bank, k, exclude_self=True)
    expected, values = brute(bank, bank, min(k, rows - 1), exclude_self=True)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, values, atol=1e-5)


def test_ties_go_to_the_smaller_index():
    bank = np.eye(4, dtype=np.float32)[[1, 0, 0, 0, 2, 0]]
    indices, _ = knn(np.eye(4, dtype=np.float32)[:1], bank, 3)
    assert indices.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("copies", [2, 4 + SLACK, 30])
@pytest.mark.parametrize("block", [13, 4_096])
def test_ties_among_the_rows_themselves_go_to_the_smaller_index_up_to_the_slack(monkeypatch, copies, block):
    monkeypatch.setattr("lm_mixup.core.nearest._WITHIN_BLOCK", block)
    bank = np.tile(np.eye(4, dtype=np.float32), (copies, 1))
    indices, similarities = knn(bank, bank, 3, exclude_self=True)
    expected, values = brute(bank, bank, 3, exclude_self=True)
    np.testing.assert_array_equal(similarities, values)
    assert (np.diff(indices, axis=1)[np.diff(similarities, axis=1) == 0] > 0).all()
    if copies == 4 + SLACK:  # itself, three taken, and as many beyond as the slack
        np.testing.assert_array_equal(indices, expected)


@pytest.mark.parametrize(("rows", "expected"), [(1, 0), (2, 1), (4, 3)])
def test_fewer_rows_than_k_give_fewer_columns(rows, expected):
    bank = unit(rows, 4, 1)
    indices, similarities = knn(bank, bank, 5, exclude_self=True)
    assert indices.shape == similarities.shape == (rows, expected)


def test_no_queries_and_no_bank():
    assert knn(unit(0, 4, 0), unit(3, 4, 0), 2)[0].shape == (0, 2)
    assert knn(unit(3, 4, 0), unit(0, 4, 0), 2)[0].shape == (3, 0)


def test_exclude_self_needs_the_bank_itself():
    with pytest.raises(ValueError, match="not the"):
        knn(unit(3, 4, 0), unit(4, 4, 0), 2, exclude_self=True)
    with pytest.raises(ValueError, match="at least 1"):
        knn(unit(3, 4, 0), unit(4, 4, 0), 0)


def test_torch_search_agrees_with_faiss():
    asked, bank = unit(50, 32, 5), unit(400, 32, 6)
    ours, theirs = knn(asked, bank, 7), knn(asked, bank, 7, device="cpu:0")
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 9), st.integers(1, 400))
def test_blocks_of_the_nearest_row_do_not_matter(seed, rows, banked, block_bytes):
    rng = np.random.default_rng(seed)
    queries, bank = (rng.standard_normal((count, 5)).astype(np.float32) for count in (rows, banked))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PRODUCT_BYTES", block_bytes)
        found, similarities = nearest(queries, bank)
    products = queries @ bank.T
    assert found.tolist() == products.argmax(axis=1).tolist()
    np.testing.assert_allclose(similarities, products.max(axis=1), rtol=1e-5, atol=1e-5)


def test_of_equally_near_rows_the_first_is_the_nearest():
    bank = np.eye(3, dtype=np.float32)[[1, 0, 0]]
    assert nearest(np.eye(3, dtype=np.float32), bank)[0].tolist() == [1, 0, 0]
