"""The sum over all nodes that `doctor --cluster` makes, between two real processes."""

from __future__ import annotations

import pytest

from lm_mixup.distributed import all_reduce, ray_cluster


@pytest.fixture
def two_members(ray_session, monkeypatch):
    """The one node twice, as if it were two."""
    (node,) = ray_cluster.nodes()
    monkeypatch.setattr(all_reduce, "nodes", lambda: [node, node])


def test_two_members_sum_by_gloo(two_members):
    worked, line = all_reduce.all_reduce(on_gpu=False)
    assert worked, line
    assert line.startswith("gloo between 2 nodes: 64 MiB in ")


def test_one_that_cannot_join_is_a_failure_with_a_remedy(two_members, monkeypatch):
    class Lost(all_reduce._Rank):
        def reduce(self, rank: int, *place: object) -> float:
            raise RuntimeError("connection refused\nby 10.0.0.7")

    monkeypatch.setattr(all_reduce, "_Rank", Lost)
    worked, line = all_reduce.all_reduce(on_gpu=False)
    assert not worked
    assert "connection refused by 10.0.0.7" in line and "GLOO_SOCKET_IFNAME" in line
