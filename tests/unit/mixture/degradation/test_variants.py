"""Pieces dealt out to variants: together all of them, in an order that the variants tell."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.mixture.degradation.variants import deal_pieces, merge_order


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ([[0, 1], [2, 3]], [0, 1, 2, 3]),
        ([[0, 2], [0, 1, 2]], [0, 1, 2]),  # between its neighbours
        ([[1, 2], [0, 1]], [0, 1, 2]),  # in front of the one that it precedes
        ([[0, 2], [1]], [0, 2, 1]),  # nothing says where: at the end
        ([[], [0], []], [0]),
        ([], []),
    ],
)
def test_merge_order_by_hand(variants: list[list[int]], expected: list[int]):
    assert merge_order(variants) == expected


@given(st.integers(1, 12), st.integers(1, 10), st.integers(0, 10_000))
def test_variants_hold_all_pieces_in_their_order(pieces: int, variants: int, seed: int):
    dealt = deal_pieces(pieces, variants, Random(seed))
    assert len(dealt) == variants
    assert all(kept and kept == sorted(set(kept)) for kept in dealt)
    assert merge_order(dealt) == list(range(pieces))
    if variants > 1 and pieces > 1:
        assert all(len(kept) < pieces for kept in dealt)
    assert dealt == deal_pieces(pieces, variants, Random(seed))
