"""Whether every node sees the run directory as the driver does."""

from __future__ import annotations

import os
import time
import uuid

from lm_mixup.config import RayConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir

_FOLDER = "probe"
_NODE_S = 60.0  # a worker process has to start and import the package
_SEEN_S = 10.0  # a mounted file system may show new files late


def refuse_relative(run: RunDir, config: RayConfig) -> None:
    """Refuses a relative run directory on a cluster that is named: each node has its own working directory.

    Raises:
        InputError: With what to pass instead.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address and run.is_local and "://" not in run.uri and not os.path.isabs(run.uri):  # noqa: PTH117
        raise InputError(
            f"run directory {run.uri}: is relative, and the Ray cluster at {address} may have several nodes; "
            "give an absolute path that every node mounts, or a URI such as s3://…"
        )


def check_run_dir(run: RunDir) -> None:
    """Refuses a run directory that some node does not share with the driver. Does nothing on one node.

    Raises:
        InputError: With the node's address and what it does not see.
    """
    import ray

    from lm_mixup.distributed.ray_cluster import nodes

    if ray.is_initialized() and len(nodes()) > 1 and (problems := run_dir_problems(run)):
        raise InputError(problems[0])


def run_dir_problems(run: RunDir) -> list[str]:
    """One line for each node that does not read what the driver writes, or does not write what it reads."""
    from lm_mixup.distributed.ray_cluster import on_every_node

    folder, token = f"{_FOLDER}/{uuid.uuid4().hex}", uuid.uuid4().hex
    fix = "mount the same folder on every node, or use a URI such as s3://…"
    problems = []
    run.write_bytes(f"{folder}/driver", token.encode())
    try:
        for node, answer in on_every_node(probe_node, (run, folder, token), _NODE_S):
            where = f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            if isinstance(answer, Exception):
                problems.append(f"run directory {run.uri}: {where}: {answer}; {fix}")
            elif not answer:
                problems.append(
                    f"run directory {run.uri}: {where} does not see the driver's file in it; {fix}"
                )
            elif not _appears(run, f"{folder}/{answer}"):
                problems.append(
                    f"run directory {run.uri}: what {where} writes does not reach the driver; {fix}"
                )
    finally:
        run.remove(folder)
    return problems


def probe_node(run: RunDir, folder: str, token: str) -> str:
    """Reads the driver's file and writes one; returns its name, or nothing if the driver's is not there."""
    if not _appears(run, f"{folder}/driver") or run.read_bytes(f"{folder}/driver") != token.encode():
        return ""
    name = uuid.uuid4().hex
    run.write_bytes(f"{folder}/{name}", b"")
    return name


def _appears(run: RunDir, relative: str) -> bool:
    until = time.monotonic() + _SEEN_S
    while not (there := run.exists(relative)) and time.monotonic() < until:
        time.sleep(0.5)
        run.fs.invalidate_cache()
    return there
