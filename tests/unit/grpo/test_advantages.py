import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lm_mixup.grpo.advantages import group_advantages, zero_std_groups

ESTIMATORS = ["grpo", "dr_grpo", "rloo", "reinforce_plus_plus"]
REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.7]])

rewards_of = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
    elements=st.integers(-20, 20).map(lambda value: value / 10),
)


def test_grpo_by_hand():
    # means 0.5, 0.4; sample deviations sqrt(1/3), 0.2
    got = group_advantages(REWARDS, "grpo", epsilon=0.0)
    high = 0.5 / np.sqrt(1 / 3)
    np.testing.assert_allclose(got, [[high, -high, -high, high], [-0.5, -0.5, -0.5, 1.5]])


def test_dr_grpo_by_hand():
    np.testing.assert_allclose(
        group_advantages(REWARDS, "dr_grpo"), [[0.5, -0.5, -0.5, 0.5], [-0.1, -0.1, -0.1, 0.3]]
    )


def test_rloo_is_the_reward_less_the_mean_of_the_others():
    got = group_advantages(REWARDS, "rloo")
    for group, row in enumerate(REWARDS):
        for place, reward in enumerate(row):
            assert got[group, place] == pytest.approx(reward - np.delete(row, place).mean())


def test_reinforce_plus_plus_by_hand():
    centered = np.array([[1.0, -1.0], [0.5, -0.5]])
    scale = np.sqrt((1 + 1 + 0.25 + 0.25) / 3)
    got = group_advantages(np.array([[2.0, 0.0], [1.0, 0.0]]), "reinforce_plus_plus", epsilon=0.0)
    np.testing.assert_allclose(got, centered / scale)


def test_gdpo_keeps_apart_what_equal_totals_hide():
    # totals 1, 1, 0 in the one group: plain GRPO cannot tell the first two completions apart
    quality, alignment = np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 1.0, 0.0]])
    components, weights = np.stack([quality, alignment]), np.array([2.0, 1.0])
    single = {1.0: (2 / 3) / np.sqrt(1 / 3), 0.0: (-1 / 3) / np.sqrt(1 / 3)}
    summed = np.array([[2 * single[1.0] + single[0.0], 2 * single[0.0] + single[1.0], 3 * single[0.0]]])
    got = group_advantages(quality + alignment, "gdpo", components, weights, epsilon=0.0)
    np.testing.assert_allclose(got, summed / summed.std(ddof=1))
    assert got[0, 0] > got[0, 1] > got[0, 2]


def test_gdpo_weights_by_group():
    rng = np.random.default_rng(0)
    components = rng.random((2, 3, 4))
    by_group = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    got = group_advantages(components.sum(axis=0), "gdpo", components, by_group)
    changed = components.copy()
    changed[1, 0] = rng.random(4)  # weight 0.0 there
    np.testing.assert_allclose(got, group_advantages(components.sum(axis=0), "gdpo", changed, by_group))
    same = np.broadcast_to(np.array([[0.5], [0.4]]), (2, 3))
    np.testing.assert_allclose(
        group_advantages(components[0], "gdpo", components, same.copy()),
        group_advantages(components[0], "gdpo", components, np.array([0.5, 0.4])),
    )


@settings(deadline=None)
@given(rewards_of, st.sampled_from(ESTIMATORS))
def test_advantages_sum_to_zero_in_each_group(rewards, estimator):
    np.testing.assert_allclose(group_advantages(rewards, estimator).sum(axis=1), 0, atol=1e-9)


@settings(deadline=None)
@given(rewards_of, st.sampled_from(ESTIMATORS), st.integers(-5, 5))
def test_shifting_the_rewards_changes_nothing(rewards, estimator, shift):
    np.testing.assert_allclose(
        group_advantages(rewards + shift, estimator), group_advantages(rewards, estimator), atol=1e-9
    )


@settings(deadline=None)
@given(rewards_of, st.sampled_from(["grpo", "reinforce_plus_plus"]), st.floats(0.5, 10))
def test_scaling_the_rewards_changes_nothing_when_the_spread_divides(rewards, estimator, scale):
    got = group_advantages(rewards * scale, estimator, epsilon=1e-8)
    np.testing.assert_allclose(got, group_advantages(rewards, estimator, epsilon=1e-8), atol=1e-5)


@settings(deadline=None)
@given(rewards_of, st.sampled_from(["dr_grpo", "rloo"]), st.floats(0.5, 10))
def test_scaling_the_rewards_scales_what_is_not_normalised(rewards, estimator, scale):
    np.testing.assert_allclose(
        group_advantages(rewards * scale, estimator), scale * group_advantages(rewards, estimator), atol=1e-9
    )


@settings(deadline=None)
@given(rewards_of, st.sampled_from(ESTIMATORS), st.randoms(use_true_random=False))
def test_the_order_inside_a_group_does_not_matter(rewards, estimator, random):
    order = list(range(rewards.shape[1]))
    random.shuffle(order)
    np.testing.assert_allclose(
        group_advantages(rewards[:, order], estimator),
        group_advantages(rewards, estimator)[:, order],
        atol=1e-9,
    )


def test_zero_std_is_decided_by_spread_and_not_by_mean():
    rewards = np.array([[0.0, 0.0], [1.0, 1.0], [0.35, 0.35 + 1e-12], [-1.0, 1.0], [0.0, 0.01]])
    np.testing.assert_array_equal(zero_std_groups(rewards), [True, True, True, False, False])
    np.testing.assert_array_equal(zero_std_groups(rewards, tolerance=0.1), [True, True, True, False, True])


def test_a_group_without_signal_has_advantage_zero():
    rewards = np.array([[0.1 + 0.2, 0.3, 0.3], [1.0, 0.0, 0.0]])
    assert np.abs(group_advantages(rewards, "grpo")[0]).max() < 1e-9


@pytest.mark.parametrize(
    ("rewards", "estimator", "message"),
    [
        (np.array([[1.0, np.nan]]), "grpo", "not finite"),
        (np.array([[1.0]]), "grpo", "two completions"),
        (np.array([1.0, 2.0]), "rloo", "two completions"),
        (np.array([[1.0, 2.0]]), "gdpo", "components"),
        (np.array([[1.0, 2.0]]), "ppo", "unknown estimator"),
    ],
)
def test_bad_rewards_are_refused(rewards, estimator, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, estimator)


def test_gdpo_refuses_shapes_that_do_not_fit():
    rewards, components = np.zeros((2, 4)), np.zeros((3, 2, 4))
    with pytest.raises(ValueError, match="do not fit"):
        group_advantages(rewards, "gdpo", components[:, :, :3], np.ones(3))
    with pytest.raises(ValueError, match="weights"):
        group_advantages(rewards, "gdpo", components, np.ones(2))
