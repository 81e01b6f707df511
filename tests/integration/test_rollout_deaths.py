"""What the rollout pool makes of actors that die, at any time and in any way: real Ray actors, no engine."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

from lm_mixup.config import GrpoConfig
from lm_mixup.distributed.ray_wait import Incidents, lost
from lm_mixup.grpo.rollout.pool import RolloutPool
from lm_mixup.grpo.types import Prompt
from lm_mixup.grpo.weights.transport import StoredWeights
from lm_mixup.grpo.weights.verify import EngineState, WeightSyncError

PROMPTS = [Prompt(str(i), "qa", [i], "") for i in range(4)]
PROBE = [1, 2, 3]


class Actor:
    """Answers as a rollout actor does, and dies in the call that is named."""

    def __init__(self, dies_in: str = "", cause: str = "exit") -> None:
        self._dies_in, self._cause, self._weights = dies_in, cause, "none"
        self._call("init")

    def _call(self, name: str) -> None:
        if name != self._dies_in:
            return
        if self._cause == "exit":
            os._exit(1)
        if self._cause == "hang":
            time.sleep(600)
        from ray.exceptions import OutOfMemoryError

        raise OutOfMemoryError("killed by the memory monitor")

    def wake(self) -> None:
        self._call("wake")

    def sleep(self) -> None:
        self._call("sleep")

    def load_weights(self, version: int, weights: str) -> None:
        self._call("load_weights")
        self._weights = weights

    def state(self, probe: list[int]) -> EngineState:
        self._call("state")
        return EngineState(np.zeros(len(probe) - 1, dtype=np.float32), self._weights, True, "float32")

    def generate(self, prompts: list[Prompt], seeds: list[int], sampling: Any) -> list[str]:
        self._call("generate")
        return [f"{prompt.id}/{seed}/{self._weights}" for prompt, seed in zip(prompts, seeds, strict=True)]


class Pool(RolloutPool):
    """Starts the actors that it is told of, one after the other, and then sound ones."""

    def __init__(self, doomed: list[tuple[str, str]], **changes: Any) -> None:
        self._config = GrpoConfig(rollout_actors=2, prompts_per_step=4, timeout_s=60, **changes)
        self._doomed = list(doomed)
        self._published = self._digests = None
        self._restarts = self.waiting = 0
        self._nodes: dict[int, Any] = {}
        self._incidents = Incidents(3600)
        self.actors = [self._start(index) for index in range(2)]

    def _start(self, index: int) -> Any:
        import ray

        dies_in, cause = self._doomed.pop(0) if self._doomed else ("", "")
        return ray.remote(Actor).options(num_cpus=0).remote(dies_in, cause)

    def step(self, version: int) -> list[str]:
        """One step of the loop; groups are texts here."""
        import ray

        self.publish(version, StoredWeights(ray.put(f"w{version}"), f"sent {version}"), PROBE, np.zeros(2))
        drawn: Any = self.generate(PROMPTS, range(4))
        self.sleep()
        return drawn


@pytest.mark.parametrize("cause", ["exit", "memory"])
@pytest.mark.parametrize("dies_in", ["wake", "load_weights", "state", "generate", "sleep"])
def test_a_death_in_any_call_is_borne(ray_session, dies_in: str, cause: str):
    pool = Pool([("", ""), (dies_in, cause)])
    for version in (0, 1):
        assert pool.step(version) == [f"{i}/{i}/w{version}" for i in range(4)]
    assert pool._restarts == (0 if (dies_in, cause) == ("sleep", "memory") else 1)
    pool.shutdown()


def test_one_that_dies_as_it_replaces_another_is_replaced_too_but_not_for_ever(ray_session):
    pool = Pool([("generate", "exit"), ("", ""), ("load_weights", "exit")])
    assert pool.step(0) == [f"{i}/{i}/w0" for i in range(4)]
    assert pool._restarts == 2
    pool.shutdown()
    pool = Pool([("generate", "exit"), ("", ""), *[("load_weights", "exit")] * 3], max_failures=3)
    with pytest.raises(
        RuntimeError, match=r"rollout actors died 4 times within 3600 s \(grpo.max_failures=3\)"
    ):
        pool.step(0)
    pool.shutdown()


@pytest.mark.parametrize("hangs_in", ["state", "generate", "sleep"])
def test_one_that_hangs_is_replaced_as_one_that_died(ray_session, hangs_in: str):
    pool = Pool([("", ""), (hangs_in, "hang")])
    pool._config = pool._config.model_copy(update={"timeout_s": 15.0})
    for version in (0, 1):
        assert pool.step(version) == [f"{i}/{i}/w{version}" for i in range(4)]
    assert pool._restarts == 1
    pool.shutdown()


def test_one_that_cannot_start_is_not_tried_again(ray_session):
    pool = Pool([("init", "memory")])
    with pytest.raises(RuntimeError, match=r"rollout actor 0 could not start: (?s:.*)memory monitor"):
        pool.step(0)
    assert pool._restarts == 0
    pool.shutdown()


def test_weights_that_an_engine_did_not_take_stop_the_run(ray_session):
    import ray

    pool = Pool([])
    pool.step(0)
    stale = StoredWeights(ray.put("w0"), "sent 1")
    with pytest.raises(WeightSyncError, match="the same weights as before"):
        pool.publish(1, stale, PROBE, np.zeros(2))
    pool.shutdown()


def test_what_the_memory_monitor_kills_is_lost(ray_session):
    import ray

    dead, sound, doomed = (ray.remote(Actor).options(num_cpus=0).remote() for _ in range(3))
    ray.kill(dead)
    ray.get(sound.wake.remote())

    @ray.remote(num_cpus=0)
    def killed() -> None:
        raise ray.exceptions.OutOfMemoryError("killed by the memory monitor")

    class Ready:
        remote = staticmethod(killed.remote)

    class Monitored:
        __ray_ready__ = Ready

    started = time.monotonic()
    assert lost([dead, sound, Monitored(), doomed]) == [0, 2]
    assert time.monotonic() - started < 30
