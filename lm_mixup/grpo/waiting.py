"""Waiting on Ray with a time limit that says what was waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def wait_for(refs: Sequence[Any], what: str, timeout_s: float) -> list[Any]:
    """The results of the references, in order.

    Args:
        refs: Ray object references.
        what: What is waited for, as it will stand in the error.
        timeout_s: Longest wait in seconds.

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
