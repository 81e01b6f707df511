"""The transition matrix from consensus: hand-counted triples, planted noise, and the traps of self-votes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.augment.curation.hoc import count_triples, fit_consensus

K = 6


def planted(rows, seed, group=10, keep=0.65):
    """Scores seen through known noise, in groups of one true class, with two neighbours of the group."""
    rng = np.random.default_rng(seed)
    transition = keep * np.eye(K) + (1 - keep) * rng.dirichlet(np.full(K, 2.0), K)
    prior = np.array([0.1, 0.12, 0.18, 0.25, 0.2, 0.15])
    truth = np.repeat(rng.choice(K, rows // group, p=prior), group)
    scores = (rng.random(rows)[:, None] > transition[truth].cumsum(axis=1)).sum(axis=1).astype(np.int8)
    others = rng.permuted(np.tile(np.arange(1, group), (rows, 1)), axis=1)[:, :2]
    index = np.arange(rows)
    neighbors = (index // group * group)[:, None] + (index[:, None] % group + others) % group
    return scores, neighbors, transition, prior, truth


def triples_of(scores, neighbors):
    """[N, 3]: the score of each row and of its two neighbours; −1 where there is none."""
    return np.column_stack([scores, np.where(neighbors >= 0, scores[neighbors], -1)])


def estimate(scores, neighbors):
    return fit_consensus(count_triples(triples_of(scores, neighbors), K))


def test_triples_are_counted_as_by_hand():
    scores = np.array([0, 1, 1], dtype=np.int8)
    neighbors = np.array([[1, 2], [0, 2], [0, 1]])
    counts = count_triples(triples_of(scores, neighbors), 2)
    # Triples (0,1,1), (1,0,1), (1,0,1): each has one 0 and two 1s, so three orders share the three counts.
    expected = np.zeros((2, 2, 2))
    expected[0, 1, 1] = expected[1, 0, 1] = expected[1, 1, 0] = 1.0
    assert np.allclose(counts, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(4, 60), st.integers(2, 6))
def test_one_bincount_equals_the_plain_loop(seed, rows, k):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-1, k, rows)
    index = np.arange(rows)[:, None]
    neighbors = (index + rng.integers(1, rows, (rows, 2))) % rows
    neighbors[rng.random((rows, 2)) < 0.2] = -1
    expected = np.zeros((k, k, k))
    for row in range(rows):
        triple = [scores[row], *(scores[n] if n >= 0 else -1 for n in neighbors[row])]
        if min(triple) >= 0:
            for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]:
                expected[tuple(triple[o] for o in order)] += 1 / 6
    assert np.allclose(count_triples(triples_of(scores, neighbors), k), expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_noise_is_found(seed):
    scores, neighbors, transition, prior, _ = planted(20_000, seed)
    found_t, found_p = estimate(scores, neighbors)
    assert found_t.dtype == found_p.dtype == np.float64
    errors = np.abs(found_t - transition).sum(axis=1)
    assert errors.mean() <= 0.05
    assert errors.max() <= 0.08  # a class of 2,000 rows has 0.04 of sampling error if its truth were known
    assert np.abs(found_p - prior).sum() <= 0.08  # 2,000 groups draw their class: their own sampling error
    assert np.allclose(found_t.sum(axis=1), 1) and np.isclose(found_p.sum(), 1)


def test_exact_counts_give_exact_parameters():
    rng = np.random.default_rng(3)
    transition = 0.7 * np.eye(4) + 0.3 * rng.dirichlet(np.ones(4), 4)
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    counts = 1e9 * np.einsum("i,ij,ik,il->jkl", prior, transition, transition, transition)
    found_t, found_p = fit_consensus(counts, prior_strength=0.0)
    assert np.allclose(found_t, transition, atol=1e-3)
    assert np.allclose(found_p, prior, atol=1e-3)


def test_a_self_vote_inflates_the_diagonal():
    # The official code counts each row among its own neighbours: diag(T) 0.905 where the truth is 0.65.
    scores, neighbors, transition, _, _ = planted(20_000, 0)
    true = np.diag(transition).mean()
    found, _ = estimate(scores, neighbors)
    assert abs(np.diag(found).mean() - true) < 0.02
    wrong, _ = estimate(scores, np.stack([np.arange(len(scores)), neighbors[:, 0]], axis=1))
    assert np.diag(wrong).mean() > true + 0.1


def test_few_rows_still_give_distributions():
    scores, neighbors, *_ = planted(20, 0)
    transition, prior = estimate(scores, neighbors)
    assert (
        np.isfinite(transition).all()
        and np.allclose(transition.sum(axis=1), 1)
        and np.isclose(prior.sum(), 1)
    )


def test_rows_without_a_whole_triple_are_not_counted():
    assert count_triples(triples_of(np.array([3]), np.array([[-1, -1]])), K).sum() == 0
    scores, neighbors = np.array([3, -1, 2]), np.array([[1, 2], [0, 2], [0, 1]])
    assert count_triples(triples_of(scores, neighbors), K).sum() == 0


def test_order_of_rows_does_not_matter():
    scores, neighbors, *_ = planted(2_000, 5)
    order = np.random.default_rng(0).permutation(len(scores))
    place = np.argsort(order)
    first = estimate(scores, neighbors)
    second = estimate(scores[order], place[neighbors[order]])
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
