"""Ray tasks, so many at a time, and the blocks of items that each works on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

_BLOCK_PARTS = 8


_MOST_BLOCKS = 512


T = TypeVar("T")


def remote_with_returns(count: int, function: Callable[..., list[Any]]) -> Any:
    """A Ray task of the `count` results that a function lists; `as_refs` gives the references to them."""
    import ray

    def alone(*args: Any) -> Any:
        return function(*args)[0]

    return ray.remote(function if count > 1 else alone).options(num_returns=count)


def as_refs(result: Any) -> list[Any]:
    """References to the results of a task: a task of one result gives its reference bare."""
    return result if isinstance(result, list) else [result]


def in_blocks(items: Sequence[T], least: int | None = None) -> list[Sequence[T]]:
    """Items in runs of equal length: at most 512 runs, as the pieces of a shuffle number that many a bucket.

    Args:
        items: Parts of a stage, units of a pool, …
        least: Items of a run, at least; 8 parts if not given.
    """
    size = max(_BLOCK_PARTS if least is None else least, -(-len(items) // _MOST_BLOCKS))
    return [items[start : start + size] for start in range(0, len(items), size)]


def run_tasks(
    calls: Iterable[Callable[[], Any]], limit: int, advance: Callable[[int], None] | None = None
) -> list[Any]:
    """Submits Ray tasks, so many at a time; returns their references in order, all finished.

    Args:
        calls: Each submits one task and returns its reference, or the list of its references.
        limit: Tasks at a time.
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
