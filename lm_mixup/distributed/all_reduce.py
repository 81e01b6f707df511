"""A sum over all nodes by the library that training uses: NCCL between GPUs, gloo between CPUs.

Ports, network interfaces and drivers that stand in its way are found in a minute here, and else by a training
that hangs.
"""

from __future__ import annotations

import datetime
import socket
import time
from typing import Any

from lm_mixup.distributed.ray_cluster import nodes

_BYTES = 64 << 20
_JOIN_S = 60.0


class _Rank:
    """One member, on a node of its own."""

    def address(self) -> tuple[str, int]:
        """This node's address and a free port on it."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def reduce(self, rank: int, size: int, address: str, port: int, backend: str) -> float:
        """Sums over all ranks; returns the seconds of the second sum: the first one connects.

        Raises:
            RuntimeError: The others did not join, or the sum is wrong.
        """
        import torch
        import torch.distributed as dist

        limit = datetime.timedelta(seconds=_JOIN_S)
        place = f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
        dist.init_process_group(backend, init_method=place, rank=rank, world_size=size, timeout=limit)
        try:
            device = "cuda" if backend == "nccl" else "cpu"
            seconds = 0.0
            for _ in range(2):
                values = torch.full((_BYTES // 4,), float(rank + 1), device=device)
                started = time.perf_counter()
                dist.all_reduce(values)
                total = float(values[-1])  # waits for the GPU
                seconds = time.perf_counter() - started
                if total != size * (size + 1) / 2:
                    raise RuntimeError(f"the sum over {size} nodes is {total}, which is wrong")
        finally:
            dist.destroy_process_group()
        return seconds


def all_reduce(*, on_gpu: bool) -> tuple[bool, str]:
    """Sums over all nodes, those with GPUs if `on_gpu`; whether that worked, and a line on it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    backend = "nccl" if on_gpu else "gloo"
    members = [node for node in nodes() if not on_gpu or node["Resources"].get("GPU", 0) > 0]
    names = ", ".join(node["NodeManagerAddress"] for node in members)
    remote: Any = ray.remote(_Rank)
    ranks = [
        remote.options(
            num_cpus=0,
            runtime_env={"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},  # else GPUs are hidden
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote()
        for node in members
    ]
    try:
        address, port = ray.get(ranks[0].address.remote(), timeout=2 * _JOIN_S)
        calls = [r.reduce.remote(i, len(ranks), address, port, backend) for i, r in enumerate(ranks)]
        seconds = max(ray.get(calls, timeout=3 * _JOIN_S))
    except ray.exceptions.RayError as error:
        cause = " ".join(str(getattr(error, "cause", None) or error).split())
        return False, (
            f"{backend} between {names}: {cause:.300}; open all ports between the nodes, and set "
            "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the interface that connects them"
        )
    finally:
        for rank in ranks:
            ray.kill(rank)
    moved = f"{_BYTES >> 20} MiB in {seconds:.2f} s"
    return True, f"{backend} between {len(members)} nodes: {moved}"
