"""The learner on the real DeepSpeed and Ray: what its losses do not depend on, and ranks that die."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from child_processes import children_like
from grpo_parts import CONFIG, SEED, make_episodes, make_model

from lm_mixup.config import GrpoConfig, ModelConfig, RewardsConfig
from lm_mixup.grpo.learner.learner import Learner
from lm_mixup.grpo.placement import reserve


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("grpo") / "nano")


def two_updates(model: str, config: GrpoConfig) -> tuple[list[dict], np.ndarray]:
    placement = reserve(config, RewardsConfig())
    try:
        learner = Learner(model, ModelConfig(), config, SEED, placement)
        updates = [learner.update(make_episodes(4), 1e-3) for _ in range(2)]
        return updates, learner.logps(list(range(20, 60)))
    finally:
        placement.release()


@pytest.fixture(scope="module")
def single_rank(ray_session, model: str):
    config = CONFIG.model_copy(update={"beta": 0.1, "rollout_actors": 1, "zero_stage": 0})
    return config, *two_updates(model, config)


@pytest.mark.parametrize(
    "change",
    [
        {"shared_prompt": False, "zero_stage": 1, "learner_ranks": 2},
        {"micro_tokens": 64, "zero_stage": 2, "learner_ranks": 2},
        {"zero_stage": 3, "learner_ranks": 2, "micro_tokens": 64, "gradient_checkpointing": True},
    ],
    ids=lambda change: " ".join(f"{k}={v}" for k, v in change.items()),
)
def test_losses_do_not_depend_on_packing_micro_batches_ranks_or_zero_stage(
    single_rank, model: str, change: dict
):
    config, updates, scored = single_rank
    other_updates, other_scored = two_updates(model, config.model_copy(update=change))
    for one, other in zip(updates, other_updates, strict=True):
        for key in ("loss", "grad_norm", "kl", "entropy", "sampling/importance_sampling_ratio/mean"):
            assert other[key] == pytest.approx(one[key], abs=1e-5, rel=1e-4), key
    np.testing.assert_allclose(other_scored, scored, atol=2e-4)


def test_several_updates_a_batch_take_ratios_against_the_first(single_rank, model: str):
    config, once, _ = single_rank
    assert config.update_batch_size is None and config.num_iterations == 1
    assert once[0]["clip_ratio/region_mean"] == 0
    updates, _ = two_updates(model, config.model_copy(update={"update_batch_size": 4, "num_iterations": 2}))
    assert updates[0]["clip_ratio/region_mean"] > 0


def kill_the_next_learner(others: set[int], killed: list[int], timeout_s: float = 120.0) -> None:
    """SIGKILL to the next process that is a learner rank, while it loads its model."""
    ends = time.monotonic() + timeout_s
    while not killed and time.monotonic() < ends:
        time.sleep(0.02)
        for process in children_like("LearnerRank"):
            if process.pid not in others:
                process.kill()
                killed.append(process.pid)


def test_a_learner_killed_on_its_first_start_is_one_to_restart(ray_session, model: str):
    """The loop meets the death in its first call, as in `test_recovery.py`, and restarts it."""
    config = CONFIG.model_copy(update={"rollout_actors": 1})
    placement = reserve(config, RewardsConfig())
    killed: list[int] = []
    arguments = ({process.pid for process in children_like("LearnerRank")}, killed)
    thread = threading.Thread(target=kill_the_next_learner, args=arguments, daemon=True)
    thread.start()
    try:
        learner = Learner(model, ModelConfig(), config, SEED, placement)
        thread.join()
        assert killed and learner.dead_ranks() == [0]
        with pytest.raises(ray_session.exceptions.RayActorError):
            learner.logps(range(20, 60))
        learner.restart()
        assert learner.dead_ranks() == []
        assert np.isfinite(learner.logps(range(20, 60))).all()
        learner.shutdown()
        with pytest.raises(ray_session.exceptions.RayActorError, match="creation task"):
            Learner(f"{model}/none", ModelConfig(), config, SEED, placement)  # an error, not a death
    finally:
        placement.release()


def test_a_dead_rank_of_two_is_told_from_one_that_waits_for_it(ray_session, model: str):
    config = CONFIG.model_copy(update={"rollout_actors": 1, "learner_ranks": 2, "zero_stage": 3})
    placement = reserve(config, RewardsConfig())
    learner = Learner(model, ModelConfig(), config, SEED, placement)
    before = learner.logps(range(20, 60))
    pid = ray_session.get(learner.ranks[1].__ray_call__.remote(lambda rank: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(ray_session.exceptions.RayError):
        learner.update(make_episodes(4), 1e-3)
    assert learner.dead_ranks() == [1]
    with pytest.raises(ray_session.exceptions.RayError):
        learner.weights()  # no reference that an engine would trip over
    assert time.monotonic() - started < 120
    learner.restart()
    assert learner.dead_ranks() == []
    np.testing.assert_array_equal(learner.logps(range(20, 60)), before)
    learner.shutdown()
    placement.release()
