import numpy as np
import pytest

from lm_mixup.rewards.quality import (
    estimate_transition,
    held_out,
    make_library,
    nearest,
    quality_reward,
    score_answers,
)


def unit(rows, dimension, seed):
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def alone(count):
    """Every row a group of its own."""
    return np.arange(count), np.arange(count)


def test_reward_is_decided_on_the_class_and_not_on_the_expectation():
    sure_of_four = np.array([0.0, 0.0, 0.0, 2e-11, 1 - 2e-11, 0.0])
    expectation = sure_of_four @ np.arange(6)
    assert expectation < 4  # 3.99999999998: compared with >= 4 it would earn nothing
    mostly_three = np.array([0.1, 0.0, 0.0, 0.6, 0.3, 0.0])  # expectation 3.0 by chance, or never
    np.testing.assert_array_equal(quality_reward(np.stack([sure_of_four, mostly_three])), [1.0, 0.3])


def test_reward_of_each_class():
    np.testing.assert_array_equal(quality_reward(np.eye(6)), [0, 0, 0, 0.3, 1, 1])


def test_transition_and_prior_by_hand():
    scores, neighbors = np.array([0, 0, 5, 5]), np.array([[1, 2], [0, 2], [3, 0], [2, 0]])
    transition, prior = estimate_transition(scores, neighbors, smoothing=0.5)
    # class 0: two neighbours of class 0, two of class 5; class 5 the same; other classes nothing
    np.testing.assert_allclose(transition[0], np.array([2.5, 0.5, 0.5, 0.5, 0.5, 2.5]) / 7)
    np.testing.assert_allclose(transition[5], np.array([2.5, 0.5, 0.5, 0.5, 0.5, 2.5]) / 7)
    np.testing.assert_allclose(transition[3], np.full(6, 1 / 6))
    np.testing.assert_allclose(prior, [0.5, 0, 0, 0, 0, 0.5])


def test_transition_is_from_the_sample_to_its_neighbours_and_the_prior_is_of_the_samples():
    """Counts that are not symmetric, and neighbours whose scores are not shared out as the samples' are."""
    scores, neighbors = np.array([0, 0, 0, 5]), np.array([[3, 1], [3, 0], [3, -1], [0, -1]])
    transition, prior = estimate_transition(scores, neighbors, smoothing=0.5)
    # class 0: two neighbours of class 0, three of class 5; class 5: one of class 0
    np.testing.assert_allclose(transition[0], np.array([2.5, 0.5, 0.5, 0.5, 0.5, 3.5]) / 8)
    np.testing.assert_allclose(transition[5], np.array([1.5, 0.5, 0.5, 0.5, 0.5, 0.5]) / 4)
    np.testing.assert_allclose(prior, [0.75, 0, 0, 0, 0, 0.25])


def test_no_row_is_its_own_neighbour():
    """Counting a row as its own neighbour would put the diagonal near 1 where scores are random."""
    vectors, scores = unit(600, 8, 0), np.random.default_rng(1).integers(0, 6, 600)
    assert not (nearest(vectors, vectors, 2, alone(600)) == np.arange(600)[:, None]).any()
    transition = make_library(vectors, scores, alone(600)[0], 2, 0.01).transition
    assert np.diag(transition).mean() == pytest.approx(1 / 6, abs=0.06)


@pytest.mark.parametrize("scores", [[], [0, 6], [-1, 2]])
def test_scores_outside_the_classes_are_refused(scores):
    with pytest.raises(ValueError, match="scores"):
        estimate_transition(
            np.array(scores, dtype=np.int64), np.zeros((len(scores), 1), dtype=np.int64), 0.01
        )


def test_nearest_agrees_with_a_full_sort():
    bank, queries = unit(300, 16, 0), unit(50, 16, 1)
    np.testing.assert_array_equal(nearest(queries, bank, 16), np.argsort(-(queries @ bank.T), axis=1)[:, :16])


def test_nearest_in_small_blocks_is_the_same(monkeypatch):
    bank = unit(64, 8, 0)
    whole = nearest(bank, bank, 5, alone(64))
    monkeypatch.setattr("lm_mixup.rewards.quality._BLOCK_CELLS", 64 * 7)
    np.testing.assert_array_equal(nearest(bank, bank, 5, alone(64)), whole)


def test_nearest_breaks_ties_by_index_and_shrugs_off_float_noise():
    bank = np.repeat(unit(3, 8, 0), 4, axis=0)
    noisy = bank + np.random.default_rng(1).normal(scale=1e-8, size=bank.shape).astype(np.float32)
    np.testing.assert_array_equal(nearest(bank[:1], noisy, 4), [[0, 1, 2, 3]])


def test_nearest_with_fewer_rows_than_asked_for():
    bank = unit(3, 8, 0)
    assert nearest(bank, bank, 16).shape == (3, 3)
    np.testing.assert_array_equal(nearest(bank[:1], bank[:1], 2, alone(1)), [[-1]])
    np.testing.assert_array_equal(
        np.sort(nearest(bank, bank, 3, alone(3))), [[-1, 1, 2], [-1, 0, 2], [-1, 0, 1]]
    )


def test_answers_tell_two_neighbourhoods_apart():
    rng = np.random.default_rng(0)
    good, bad = np.eye(32, dtype=np.float32)[0], np.eye(32, dtype=np.float32)[1]
    centres = np.where(np.arange(200)[:, None] % 2 == 0, good, bad)
    vectors = centres + rng.normal(scale=0.05, size=(200, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.where(np.arange(200) % 2 == 0, rng.choice([4, 5], 200), rng.choice([0, 1], 200))
    made = make_library(vectors, scores, np.arange(200), prior_neighbors=2, smoothing=0.01)
    np.testing.assert_array_equal(score_answers(np.stack([good, bad]), made, 16), [1.0, 0.0])


def test_a_class_without_samples_never_wins():
    """With neighbours that disagree, a flat transition row would be the likeliest: it has prior 0."""
    vectors = unit(40, 4, 0)
    scores = np.repeat([0, 2], 20)
    made = make_library(vectors, scores, np.arange(40), prior_neighbors=2, smoothing=0.01)
    assert made.prior[[1, 3, 4, 5]].sum() == 0
    np.testing.assert_array_equal(score_answers(unit(30, 4, 1), made, 16), np.zeros(30))


def test_siblings_of_a_sample_do_not_count_as_its_neighbours():
    """A good sample and its degraded variant are nearest to each other; style tells them apart elsewhere."""
    rng = np.random.default_rng(0)
    topics, style = rng.normal(size=(100, 16)), np.zeros((100, 17))
    style[:, 16] = 1.0  # closer in topic than in style: the sibling comes first
    vectors = np.concatenate([np.c_[topics, np.zeros(100)] + style, np.c_[topics, np.zeros(100)] - style])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    scores, topic = np.repeat([5, 1], 100), np.tile(np.arange(100), 2)
    siblings = make_library(vectors, scores, np.arange(200), 1, 0.01)
    apart = make_library(vectors, scores, topic, 1, 0.01)
    assert siblings.transition[5, 5] < 0.1 < 0.6 < apart.transition[5, 5]
    assert held_out(siblings, topic, 16)["separation"] < 0 < held_out(apart, topic, 16)["separation"]


def test_held_out_by_hand():
    vectors = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)
    made = make_library(vectors, np.repeat([5, 0], 4), np.arange(8), 2, 0.01)
    assert held_out(made, np.arange(8), 3) == {"agreement": 1.0, "separation": 1.0}
    # one group: no neighbours, the prior decides, and equal classes go to the lower one
    assert held_out(made, np.zeros(8, dtype=np.int64), 3) == {"agreement": 0.5, "separation": 0.0}
