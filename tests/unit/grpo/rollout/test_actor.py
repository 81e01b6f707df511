"""A rollout actor that shares its GPU: when its engine sleeps and wakes, without one."""

from __future__ import annotations

from typing import Any

import pytest

from lm_mixup.grpo.rollout.actor import RolloutActor
from lm_mixup.models.engine import Sampling


class Engine:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append((name, *args))


def make(shares_gpu: bool) -> tuple[RolloutActor, Engine]:
    actor, engine = RolloutActor.__new__(RolloutActor), Engine()
    actor._engine, actor._shares_gpu, actor._version = engine, shares_gpu, 3  # type: ignore[assignment]
    return actor, engine


def test_weights_come_before_the_cache_takes_its_room_and_nothing_is_drawn_until_then():
    actor, engine = make(shares_gpu=True)
    actor.sleep()
    with pytest.raises(RuntimeError, match="not received weights"):
        actor.generate([], [], Sampling())
    actor.wake()
    actor.load_weights(4, {})
    assert engine.calls == [("sleep",), ("wake", "weights"), ("load_weights", {}), ("wake", "kv_cache")]
    actor.sleep()
    actor.wake()
    actor.start_weight_update()
    actor.update_weights({"names": []})
    actor.finish_weight_update(5)
    assert [call[0] for call in engine.calls[4:]] == [
        "sleep",
        "wake",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
        "wake",
    ]
    assert actor._version == 5


def test_an_engine_with_a_gpu_of_its_own_never_sleeps():
    actor, engine = make(shares_gpu=False)
    actor.sleep()
    actor.wake()
    actor.load_weights(4, {})
    assert engine.calls == [("load_weights", {})]
