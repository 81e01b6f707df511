"""Intervals and paired differences, against answers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.experiments.statistics import mean_over_seeds, paired_difference


def test_students_interval_over_the_means_of_seeds():
    """Means 1, 2 and 3: standard error 1/√3, and t of two degrees of freedom is 4.3027."""
    found = mean_over_seeds(np.array([[0.0, 2.0], [2.0, 2.0], [3.0, 3.0]]))
    assert found.mean == 2.0
    assert found.high - 2.0 == 2.0 - found.low == pytest.approx(4.302653 / 3**0.5, abs=1e-5)


def test_of_one_seed_there_is_no_interval():
    found = mean_over_seeds(np.array([[0.0, 1.0, 1.0, 0.0]]))
    assert (found.mean, found.low, found.high) == (0.5, None, None)


@pytest.mark.parametrize("questions", [1, 50])
def test_of_one_seed_there_is_a_difference_and_nothing_else(questions: int):
    scores = np.linspace(0, 1, questions)[None]
    found = paired_difference(scores + 0.2, scores)
    assert found.mean == pytest.approx(0.2)
    assert found.low is found.high is found.p is None


def test_one_value_a_seed_is_tested_by_students_paired_t():
    """Gaps 1, 2 and 3: t = 2√3 of two degrees of freedom, whose tail is (1 − t / √(t² + 2)) / 2 = 0.0371."""
    found = paired_difference(np.array([[5.0], [7.0], [9.0]]), np.array([[4.0], [5.0], [6.0]]))
    assert found.mean == 2.0
    assert found.high - 2.0 == 2.0 - found.low == pytest.approx(4.302653 / 3**0.5, abs=1e-5)
    assert found.p == pytest.approx(1 - (12 / 14) ** 0.5)


def test_one_value_a_seed_that_never_changes():
    same = np.full((3, 1), 0.5)
    assert paired_difference(same, same).p == 1
    found = paired_difference(same, same - 0.25)
    assert (found.mean, found.low, found.high, found.p) == (0.25, 0.25, 0.25, None)


def test_the_same_is_no_difference():
    scores = np.random.default_rng(0).random((3, 20))
    found = paired_difference(scores, scores)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_shift_of_every_question_is_certain():
    scores = np.random.default_rng(0).random((3, 20))
    found = paired_difference(scores + 0.25, scores)
    assert found.mean == pytest.approx(0.25) == pytest.approx(found.low) == pytest.approx(found.high)
    assert found.p == pytest.approx(2 / 10_001)


def test_pairs_tell_what_means_do_not():
    """Questions differ a lot, the arms by a little on each: only in pairs does that show."""
    rng = np.random.default_rng(1)
    hard = rng.random((1, 200)).repeat(3, axis=0)
    arm = hard + 0.02 + 0.01 * rng.standard_normal((3, 200))
    assert paired_difference(arm, hard).low > 0.01
    assert paired_difference(rng.permuted(arm, axis=1), hard).low < 0


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 9))
def test_the_order_of_the_arms_turns_the_sign(seeds: int, questions: int, draw: int):
    rng = np.random.default_rng(draw)
    one, other = rng.random((2, seeds, questions))
    there, back = paired_difference(one, other), paired_difference(other, one)
    assert there.mean == pytest.approx(-back.mean)
    if seeds > 1:
        assert there.low == pytest.approx(-back.high)
        assert there.p == back.p
        assert there.low <= there.high


def test_other_shapes_are_not_pairs():
    with pytest.raises(ValueError, match="not pairs"):
        paired_difference(np.zeros((2, 3)), np.zeros((3, 3)))
