"""The Bayes vote over score classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lm_mixup.core.score_classes import NUM_CLASSES, posterior, score_histogram

histograms = arrays(
    np.float64, st.tuples(st.integers(1, 8), st.just(NUM_CLASSES)), elements=st.integers(0, 16)
)


def random_model(seed):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(NUM_CLASSES), NUM_CLASSES), rng.dirichlet(np.ones(NUM_CLASSES))


def test_posterior_by_hand():
    transition, prior = np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0.25, 0.75])
    # two neighbours of class 0, one of class 1: 0.25 · 0.8² · 0.2 = 0.032 and 0.75 · 0.3² · 0.7 = 0.04725
    got = posterior(np.array([[2.0, 1.0], [0.0, 0.0]]), transition, prior)
    np.testing.assert_allclose(got, [[0.032 / 0.07925, 0.04725 / 0.07925], [0.25, 0.75]])


def test_posterior_of_a_class_without_samples_is_zero():
    transition, prior = np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([1.0, 0.0])
    np.testing.assert_array_equal(posterior(np.array([[0.0, 16.0]]), transition, prior), [[1.0, 0.0]])


def test_posterior_neither_overflows_nor_vanishes():
    transition = np.full((NUM_CLASSES, NUM_CLASSES), 1e-300)
    np.fill_diagonal(transition, 1.0)
    got = posterior(np.eye(NUM_CLASSES) * 1e4, transition, np.full(NUM_CLASSES, 1 / NUM_CLASSES))
    np.testing.assert_allclose(got, np.eye(NUM_CLASSES))


@settings(deadline=None)
@given(histograms, st.integers(0, 50))
def test_posterior_sums_to_one(hist, seed):
    got = posterior(hist, *random_model(seed))
    np.testing.assert_allclose(got.sum(axis=1), 1.0)
    assert (got >= 0).all()


@settings(deadline=None)
@given(histograms, st.integers(0, 50), st.permutations(range(NUM_CLASSES)))
def test_posterior_follows_a_renaming_of_the_classes(hist, seed, names):
    transition, prior = random_model(seed)
    names = np.array(names)
    renamed = posterior(hist[:, names], transition[np.ix_(names, names)], prior[names])
    np.testing.assert_allclose(renamed, posterior(hist, transition, prior)[:, names], atol=1e-12)


@settings(deadline=None)
@given(histograms, st.integers(0, 50), st.floats(0.01, 100))
def test_posterior_ignores_the_scale_of_the_prior_and_of_the_likelihoods(hist, seed, scale):
    transition, prior = random_model(seed)
    np.testing.assert_allclose(
        posterior(hist, transition * scale, prior * scale), posterior(hist, transition, prior), atol=1e-9
    )


def test_posterior_refuses_zero_transitions():
    with pytest.raises(ValueError, match="positive"):
        posterior(np.ones((1, 2)), np.eye(2), np.ones(2))


def test_posterior_of_votes_by_hand():
    transition = np.array([[0.8, 0.2], [0.4, 0.6]])
    prior = np.array([0.5, 0.5])
    votes = np.array([[0, 0], [1, -1], [-1, -1]])
    expected = [
        [0.8 * 0.8 / (0.8 * 0.8 + 0.4 * 0.4), 0.4 * 0.4 / (0.8 * 0.8 + 0.4 * 0.4)],
        [0.2 / 0.8, 0.6 / 0.8],
        [0.5, 0.5],
    ]
    assert np.allclose(posterior(score_histogram(votes, 2), transition, prior), expected)


def test_histogram_by_hand():
    votes = np.array([[5, 5, 0], [3, 3, -1]], dtype=np.int8)
    np.testing.assert_array_equal(score_histogram(votes), [[1, 0, 0, 0, 0, 2], [0, 0, 0, 2, 0, 0]])
