"""Ray tasks with bounded concurrency, and the blocks of items that they process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

_BLOCK_PARTS = 8
_MOST_BLOCKS = 512

T = TypeVar("T")


def remote_with_returns(count: int, function: Callable[..., list[Any]]) -> Any:
    """A Ray task that returns the `count` items of a list separately; `as_refs` lists their references."""
    import ray

    def alone(*args: Any) -> Any:
        return function(*args)[0]

    return ray.remote(function if count > 1 else alone).options(num_returns=count)


def as_refs(result: Any) -> list[Any]:
    """The references to the results of a task; for one result Ray returns a bare reference, not a list."""
    return result if isinstance(result, list) else [result]


def in_blocks(items: Sequence[T], least: int | None = None) -> list[Sequence[T]]:
    """Splits items into at most 512 blocks of equal length.

    The bound keeps the pieces of a shuffle, one per block and bucket, few enough.

    Args:
        least: Fewest items of a block; default: 8.
    """
    size = max(_BLOCK_PARTS if least is None else least, -(-len(items) // _MOST_BLOCKS))
    return [items[start : start + size] for start in range(0, len(items), size)]


def run_tasks(
    calls: Iterable[Callable[[], Any]], limit: int, advance: Callable[[int], None] | None = None
) -> list[Any]:
    """Runs Ray tasks, at most `limit` at a time, and returns their references in order.

    Args:
        calls: Each submits one task and returns its reference, or the list of its references.
        advance: Called with 1 for every task that ends.

    Raises:
        ray.exceptions.RayTaskError: A task failed.
    """
    import ray

    results: list[Any] = []
    running: list[Any] = []

    def wait_for_one() -> None:
        nonlocal running
        ended, running = ray.wait(running, num_returns=1, fetch_local=False)
        if advance:
            advance(len(ended))

    for call in calls:
        if len(running) >= limit:
            wait_for_one()
        results.append(call())
        running.append(as_refs(results[-1])[0])
    while running:
        wait_for_one()
    return results
