import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.config import RewardsConfig, RewardWeights
from lm_mixup.core.task_types import TASK_TYPES
from lm_mixup.rewards.alignment import alignment_reward, cosine
from lm_mixup.rewards.combine import combine, normalize_then_sum, weights_of

PARTS = {
    "quality": np.array([1.0, 0.3, 0.0, 1.0]),
    "alignment": np.array([1.0, 0.0, 1.0, 0.0]),
    "format": np.array([1.0, 0.5, 1.0, 0.0]),
    "faithfulness": np.array([1.0, 0.5, 0.2, 0.0]),
}
TYPES = ["qa", "mcq", "cs", "para"]


def test_alignment_threshold_and_continuous():
    similarity = np.array([0.79999, 0.8, 1.0, -0.3])
    np.testing.assert_array_equal(alignment_reward(similarity, "threshold", 0.8), [0, 1, 1, 0])
    np.testing.assert_array_equal(alignment_reward(similarity, "continuous", 0.8), [0.79999, 0.8, 1.0, 0.0])


def test_a_text_compared_with_itself_is_one():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_array_equal(alignment_reward(cosine(vectors, vectors), "threshold", 1.0), np.ones(500))


def test_default_weights_by_hand():
    # the same for every task type: quality 0.25, alignment 0.15, format 0.1, faithfulness 0.5
    got = combine(PARTS, TYPES, [0, 1, 2, 3], RewardsConfig())
    np.testing.assert_allclose(got, [1.0, 0.075 + 0.05 + 0.25, 0.15 + 0.1 + 0.1, 0.25])


@pytest.mark.parametrize("component", ["quality", "alignment", "format", "faithfulness"])
def test_an_override_of_zero_is_zero(component):
    override = RewardWeights(**(dict.fromkeys(PARTS, 1.0) | {component: 0.0}))
    config = RewardsConfig(task_weights={"qa": override})
    assert weights_of("qa", config)[component] == 0.0
    others = [values for name, values in PARTS.items() if name != component]
    np.testing.assert_allclose(combine(PARTS, ["qa"] * 4, [0] * 4, config), np.sum(others, axis=0))


def test_all_weights_zero_give_zero():
    nothing = RewardWeights(**dict.fromkeys(PARTS, 0.0))
    config = RewardsConfig(task_weights={"qa": nothing})
    np.testing.assert_array_equal(combine(PARTS, ["qa"] * 4, [0] * 4, config), np.zeros(4))


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.7])
def test_the_format_weight_is_honoured(weight):
    config = RewardsConfig(weights=RewardWeights(**dict.fromkeys(PARTS, 0.0) | {"format": weight}))
    np.testing.assert_allclose(combine(PARTS, ["qa"] * 4, [0] * 4, config), weight * PARTS["format"])


def test_a_task_type_without_its_own_weights_has_the_general_ones():
    config = RewardsConfig(weights=RewardWeights(quality=3.0), task_weights={})
    assert all(weights_of(task_type, config)["quality"] == 3.0 for task_type in TASK_TYPES)


def test_normalize_then_sum_by_hand():
    # group 7: quality 1, 0 → ±0.5 / sqrt(0.5); alignment equal → 0. Group 3: the other way round.
    components = np.array([[1.0, 5.0, 0.0, 5.0], [2.0, 0.0, 2.0, 10.0]])
    weights = np.array([[1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    got = normalize_then_sum(components, weights, np.array([7, 3, 7, 3]))
    high, low = 0.5 / (np.sqrt(0.5) + 1e-4), 0.5 * 5 / (np.sqrt(50) + 1e-4)
    np.testing.assert_allclose(got, [high, -low, -high, low])


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(1, 100), st.permutations(range(12)))
def test_normalize_then_sum_ignores_a_components_range_and_the_order_of_rows(seed, scale, order):
    rng = np.random.default_rng(seed)
    components, weights, groups = rng.random((3, 12)), rng.random((3, 12)), np.repeat([2, 0, 9], 4)
    plain = normalize_then_sum(components, weights, groups)
    scaled = components * np.array([[scale], [1.0], [1.0]])
    np.testing.assert_allclose(normalize_then_sum(scaled, weights, groups), plain, atol=0.03)
    moved = normalize_then_sum(components[:, order], weights[:, order], groups[list(order)])
    np.testing.assert_allclose(moved, plain[list(order)], atol=1e-9)


def test_compositions_differ_and_the_config_chooses():
    config = RewardsConfig(composition="normalize_then_sum")
    got = combine(PARTS, ["qa"] * 4, [0, 0, 1, 1], config)
    assert got.reshape(2, 2).sum(axis=1) == pytest.approx([0.0, 0.0])
    assert not np.allclose(got, combine(PARTS, ["qa"] * 4, [0, 0, 1, 1], RewardsConfig()))
