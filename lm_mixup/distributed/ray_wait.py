"""Waits on Ray with a time limit and a clear error, and detects dead actors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

_ANSWER_S = 30.0  # the death of an actor is reported at once, that of its node when Ray notices it


def wait_for(refs: Sequence[Any], what: str, timeout_s: float) -> list[Any]:
    """The results of the references, in order.

    Args:
        what: What is waited for, for the error message.

    Raises:
        TimeoutError: Time ran out; the message says what was waited for.
    """
    import ray

    try:
        results: list[Any] = ray.get(list(refs), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise TimeoutError(
            f"waited {timeout_s:.0f} s for {what} (grpo.timeout_s); it did not answer"
        ) from None
    return results


class Incidents:
    """Counts failures within a sliding window of time, those of one cause once.

    Actors that die within a minute of each other count as one incident: a node that dies takes all its actors
    with it. An actor that dies again is an incident of its own, so a crash that repeats is not hidden.
    """

    _TOGETHER_S = 60.0

    def __init__(self, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s, self._clock = window_s, clock
        self._begun: list[float] = []
        self._members: set[int] = set()

    def add(self, actor: int) -> int:
        """Counts the death of an actor, by its index; returns the incidents within the window."""
        now = self._clock()
        if not self._begun or now - self._begun[-1] > self._TOGETHER_S or actor in self._members:
            self._begun.append(now)
            self._members = set()
        self._members.add(actor)
        self._begun = [begun for begun in self._begun if now - begun <= self._window_s]
        return len(self._begun)


def deaths() -> tuple[type[Exception], ...]:
    """The exceptions of a call to an actor whose process is gone, for whatever reason."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

    return RayActorError, OutOfMemoryError, NodeDiedError


def failed_to_start(error: Exception) -> bool:
    """Whether an actor failed in its constructor: a new one would fail again."""
    return bool(getattr(error, "actor_init_failed", False))


def lost(actors: Sequence[Any]) -> list[int]:
    """The actors whose process is gone. An actor that hangs or failed to start is not among them."""
    import ray

    answers = [actor.__ray_ready__.remote() for actor in actors]
    ready, _ = ray.wait(answers, num_returns=len(answers), timeout=_ANSWER_S)
    return [index for index, answer in enumerate(answers) if answer in ready and _died(answer)]


def _died(answer: Any) -> bool:
    import ray

    try:
        ray.get(answer)
    except deaths() as error:
        return not failed_to_start(error)
    return False
