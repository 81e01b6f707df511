"""Waits on Ray with a time limit and a clear error, and detects dead actors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

_ANSWER_S = 30.0  # the death of an actor is reported at once, that of its node when Ray notices it


class Hang(TimeoutError):
    """An actor did not answer in time: it is as good as dead."""


def wait_for(refs: Sequence[Any], what: str, timeout_s: float) -> list[Any]:
    """The results of the references, in order.

    Args:
        what: What is waited for, for the error message.

    Raises:
        Hang: Time ran out; the message says what was waited for.
    """
    import ray

    try:
        results: list[Any] = ray.get(list(refs), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise Hang(f"waited {timeout_s:.0f} s for {what} (grpo.timeout_s); it did not answer") from None
    return results


class Incidents:
    """Counts failures within a sliding window of time, those of one cause once.

    A node that dies takes all its actors with it: those of one node that die within a minute of each other
    count as one incident, those of two nodes as two. An actor that dies again is an incident of its own, so a
    crash that repeats is not hidden.
    """

    _TOGETHER_S = 60.0

    def __init__(self, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s, self._clock = window_s, clock
        self._begun: list[float] = []
        self._latest: dict[str | None, tuple[float, set[int]]] = {}  # of each node: since when, and who

    def add(self, actor: int, node: str | None = None) -> int:
        """Counts a death; returns the incidents within the window.

        Args:
            actor: Its index.
            node: The node that it was on; those of which nothing is known count as one.
        """
        now = self._clock()
        since, members = self._latest.get(node, (now, set()))
        if not members or now - since > self._TOGETHER_S or actor in members:
            self._begun.append(now)
            since, members = now, set()
        self._latest[node] = since, members | {actor}
        self._begun = [begun for begun in self._begun if now - begun <= self._window_s]
        return len(self._begun)


def deaths() -> tuple[type[Exception], ...]:
    """The exceptions of a call to an actor whose process is gone, for whatever reason."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

    return RayActorError, OutOfMemoryError, NodeDiedError


def deaths_and_hangs() -> tuple[type[Exception], ...]:
    """`deaths`, and the timeout of an actor that hangs: it is as good as dead, and is replaced likewise."""
    return (*deaths(), TimeoutError)


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
