"""The bundles of a placement group."""

from __future__ import annotations

import pytest

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.core.errors import InputError
from lm_mixup.grpo.placement import plan_bundles


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
