"""Connects to a Ray cluster, or starts a local one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any

from tenacity import Retrying, retry_if_exception_message, stop_after_attempt

from lm_mixup.config import RayConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say

_GIB = 1 << 30


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
            include_dashboard=False,
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
    """Whether the connected cluster has a GPU."""
    import ray

    return bool(ray.cluster_resources().get("GPU", 0) > 0)


def sees_gpu(config: RayConfig) -> bool:
    """Whether there is a GPU where Ray will run: in the cluster that is named, or else on this machine.

    Starts nothing; a named cluster is connected to.

    Raises:
        InputError: The named cluster does not answer.
    """
    if config.address or os.environ.get("RAY_ADDRESS"):
        start_ray(config)
        return has_gpu()
    import torch

    return torch.cuda.is_available()
