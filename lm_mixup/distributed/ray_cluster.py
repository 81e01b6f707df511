"""Connects to a Ray cluster, or starts a local one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tenacity import Retrying, retry_if_exception_message, stop_after_attempt

from lm_mixup.config import RayConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say

_GIB = 1 << 30
_accelerator = "auto"  # of the connection, as Ray's own is one for a process


def start_ray(config: RayConfig) -> None:
    """Connects to the cluster named in the config or RAY_ADDRESS, or else starts Ray on this machine.

    Raises:
        InputError: The named cluster does not answer.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault(
        "RAY_BACKEND_LOG_LEVEL", "fatal"
    )  # its lines go to Ray's log files, not the terminal
    import ray

    global _accelerator
    _accelerator = config.accelerator
    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    address = config.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            _probe(address)
            ray.init(address=address, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"no Ray cluster answers at {address} ({_first_line(error)}); check the address and "
                "RAY_AUTH_TOKEN, or unset RAY_ADDRESS to run on this machine"
            ) from None
    else:
        # A busy machine may need longer than the 30 s that Ray gives itself, which no setting changes.
        slow = retry_if_exception_message(match=".*timed out during startup")
        Retrying(retry=slow, stop=stop_after_attempt(3), reraise=True)(
            ray.init,
            address="local",  # else Ray joins whatever cluster runs on this machine, and refuses `num_cpus`
            num_cpus=config.num_cpus,
            object_store_memory=int(config.object_store_gib * _GIB),
            include_dashboard=config.dashboard,
            **options,
        )
    if address:
        nodes = sum(node["Alive"] for node in ray.nodes())
        say(f"joined the Ray cluster at {ray.get_runtime_context().gcs_address}: {nodes} nodes")
    _quiet_ray_data()
    _stop_as_by_keyboard()


def _probe(address: str) -> None:
    """Refuses an address where nothing listens: Ray itself would try for a quarter of an hour.

    Raises:
        OSError: Nothing accepts a connection within 20 seconds.
    """
    place = address.partition("://")[2] or address
    host, colon, port = place.rpartition(":")
    if colon and port.isdigit():  # else `auto` or `local`
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()


def _stop_as_by_keyboard() -> None:
    """SIGTERM ends the driver as Ctrl-C does; Ray's own handler, set by `init`, prints a stack first."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _quiet_ray_data() -> None:
    """Our own progress bars speak for Ray Data; its per-execution lines go to its log files only."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def has_gpu() -> bool:
    """Whether models run on GPUs: as `ray.accelerator` says, or where the cluster has or may get any.

    A group of GPU nodes that is scaled to 0 counts: only the autoscaler's declared node types tell such a
    cluster from one without GPUs.
    """
    import ray
    from ray._private.state import state

    if _accelerator != "auto":
        return _accelerator == "gpu"
    if ray.cluster_resources().get("GPU", 0) > 0:
        return True
    declared = state.get_max_resources_from_cluster_config() or {}
    return declared.get("GPU", 0) > 0


def sees_gpu(config: RayConfig) -> bool:
    """Whether models will run on GPUs: in the cluster that is named, or else on this machine.

    Starts nothing; a named cluster is connected to.

    Raises:
        InputError: The named cluster does not answer.
    """
    if config.accelerator != "auto":
        return config.accelerator == "gpu"
    if config.address or os.environ.get("RAY_ADDRESS"):
        start_ray(config)
        return has_gpu()
    import torch

    return torch.cuda.is_available()


def gpus_of_nodes() -> list[float]:
    """GPUs of each live node, and of each type of node that the autoscaler may start."""
    from ray._private.state import state

    declared = state.get_cluster_config()
    groups = declared.node_group_configs if declared is not None else ()
    return [
        *(node["Resources"].get("GPU", 0.0) for node in nodes()),
        *(float(group.resources.get("GPU", 0)) for group in groups if group.max_count != 0),
    ]


def nodes() -> list[dict[str, Any]]:
    """The live nodes, each with Ray's `NodeID`, `NodeManagerAddress`, `NodeName` and `Resources`."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def on_every_node(
    task: Callable[..., Any], arguments: Sequence[Any], timeout_s: float
) -> list[tuple[dict[str, Any], Any]]:
    """Runs a function once on every live node. It reserves nothing there, and sees all GPUs of the node.

    Returns:
        Each node, as Ray describes it, with the result or the exception; a `TimeoutError` where there was no
        answer in time. A node that was lost meanwhile is not among them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(task)
    running = {
        remote.options(
            num_cpus=0,
            max_retries=0,
            runtime_env={"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},  # else all are hidden
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(*arguments): node
        for node in nodes()
    }
    _, late = ray.wait(list(running), num_returns=len(running), timeout=timeout_s)
    results: list[tuple[dict[str, Any], Any]] = []
    for ref, node in running.items():
        try:
            if ref in late:
                results.append((node, TimeoutError(f"no answer in {timeout_s:.0f} s")))
            else:
                results.append((node, ray.get(ref)))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            results.append((node, cause if isinstance(cause, Exception) else error))
    alive = {node["NodeID"] for node in nodes()}
    return [(node, answer) for node, answer in results if node["NodeID"] in alive]
