"""How failures are counted: by incident, within a window of time."""

from __future__ import annotations

from lm_mixup.distributed.ray_wait import Incidents


def test_a_node_that_dies_with_its_actors_counts_once_and_a_repeated_crash_each_time():
    now = 0.0
    incidents = Incidents(600.0, clock=lambda: now)
    assert [incidents.add(actor) for actor in (0, 1, 2, 3)] == [1, 1, 1, 1]
    now = 5.0
    assert [incidents.add(2), incidents.add(2)] == [2, 3]  # its successors die too
    assert incidents.add(1) == 3
    now = 300.0
    assert incidents.add(0) == 4
    now = 604.0
    assert incidents.add(0) == 4  # the first has left the window
    now = 700.0
    deaths = ((0, "a"), (1, "a"), (2, "b"), (3, "b"))  # two nodes
    assert [incidents.add(actor, node) for actor, node in deaths] == [3, 3, 4, 4]
    now = 720.0
    assert incidents.add(1, "a") == 5  # of the same node, again
    now = 5_000.0
    assert incidents.add(0) == 1
