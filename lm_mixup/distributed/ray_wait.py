"""Waiting on Ray with a time limit that says what was waited for, and telling who died."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_ANSWER_S = 30.0  # a dead actor is known at once, or, with its machine, when Ray misses that


def wait_for(refs: Sequence[Any], what: str, timeout_s: float) -> list[Any]:
    """The results of the references, in order.

    Args:
        what: What is waited for, as it will stand in the error.

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


def deaths() -> tuple[type[Exception], ...]:
    """What calls of an actor raise whose process is gone, killed by Ray's memory monitor or otherwise."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

    return RayActorError, OutOfMemoryError, NodeDiedError


def failed_to_start(error: Exception) -> bool:
    """Whether an actor raised an error as it was made: another one would raise it again."""
    return bool(getattr(error, "actor_init_failed", False))


def lost(actors: Sequence[Any]) -> list[int]:
    """Which of the actors have lost their process. One that hangs has not, nor one that failed to start."""
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
