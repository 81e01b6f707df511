"""The bundles of a placement group."""

from __future__ import annotations

import pytest

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.core.errors import InputError
from lm_mixup.grpo.placement import check_fits_a_node, plan_bundles, reward_bundles


def test_bundles():
    rewards = RewardsConfig(num_actors=2, num_cpus=0.1)
    cpu = GrpoConfig(learner_ranks=2, rollout_actors=3, cpus_per_actor=0.5, prompts_per_step=4)
    bundles, first = plan_bundles(cpu, rewards, on_gpu=False)
    assert bundles == [{"CPU": 0.5}] * 3 + [{"CPU": 0.1}] * 2
    assert first == 0
    apart = cpu.model_copy(update={"mode": "disaggregated", "tensor_parallel_size": 2})
    bundles, first = plan_bundles(apart, rewards, on_gpu=False)
    assert bundles == [{"CPU": 0.5}] * 5 + [{"CPU": 0.1}] * 2
    assert first == 2
    bundles, first = plan_bundles(apart, rewards, on_gpu=True)
    assert [bundle.get("GPU", 0) for bundle in bundles] == [1, 1, 2, 2, 2, 0, 0]
    shared, first = plan_bundles(cpu, rewards, on_gpu=True)
    assert [bundle.get("GPU", 0) for bundle in shared] == [1, 1, 1, 0, 0]
    assert first == 0
    with pytest.raises(InputError, match="tensor_parallel_size"):
        plan_bundles(cpu.model_copy(update={"tensor_parallel_size": 2}), rewards, on_gpu=True)


def test_rewards_on_gpus_share_those_of_learner_and_engine():
    config = GrpoConfig(learner_ranks=2, rollout_actors=2, cpus_per_actor=2, prompts_per_step=4)
    rewards = RewardsConfig(num_actors=3, num_cpus=0.5, num_gpus=0.5)
    bundles, first = plan_bundles(config, rewards, on_gpu=True)
    assert (bundles, first) == ([{"CPU": 3.0, "GPU": 1.0}] * 2, 0)
    assert reward_bundles(config, rewards, 2, on_gpu=True) == ([0, 1, 0], 0.05)
    assert plan_bundles(config, rewards, on_gpu=False)[0] == [{"CPU": 2}] * 2 + [{"CPU": 0.5}] * 3
    assert reward_bundles(config, rewards, 5, on_gpu=False) == ([2, 3, 4], 0.0)
    apart = config.model_copy(update={"mode": "async"})
    assert [b.get("GPU", 0) for b in plan_bundles(apart, rewards, on_gpu=True)[0]] == [1] * 4 + [0.5] * 3
    assert reward_bundles(apart, rewards, 7, on_gpu=True) == ([4, 5, 6], 0.5)


def test_an_engine_wider_than_any_node_is_refused_at_once():
    config = GrpoConfig(mode="async", tensor_parallel_size=4)
    check_fits_a_node(config, [0.0, 4.0])
    with pytest.raises(
        InputError, match=r"tensor_parallel_size 4 .* largest node has 2; lower it to 2 or less"
    ):
        check_fits_a_node(config, [2.0, 2.0, 0.0])
