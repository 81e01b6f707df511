"""Whether PyTorch can use the GPUs that Ray counts, and if not, why."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_mixup.core.errors import InputError

# Major version of CUDA → oldest driver that runs it (NVIDIA, CUDA Toolkit release notes, minor-version
# compatibility). torch 2.13 and vLLM 0.32 are built for CUDA 13.
OLDEST_DRIVER = {12: 525, 13: 580}
_ANSWER_S = 120.0  # importing torch on a cold node takes tens of seconds


@dataclass(frozen=True)
class GpuState:
    """What one node says of its GPUs.

    Attributes:
        names: GPUs that the driver lists, as `nvidia-smi` names them.
        driver: The driver's version; None without a driver.
        torch: torch's version.
        cuda: The CUDA version torch was built for; None for a CPU build.
        available: Whether torch can use a GPU.
    """

    names: tuple[str, ...]
    driver: str | None
    torch: str
    cuda: str | None
    available: bool


def query_driver() -> tuple[tuple[str, ...], str | None]:
    """The GPUs of this machine and the driver's version, by `nvidia-smi`; nothing where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), None
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    rows = [line.rsplit(",", 1) for line in listed.stdout.splitlines() if "," in line]
    if listed.returncode or not rows:
        return (), None
    return tuple(name.strip() for name, _ in rows), rows[0][1].strip()


def gpu_state() -> GpuState:
    """The state of this machine. Imports torch."""
    import torch

    names, driver = query_driver()
    return GpuState(names, driver, torch.__version__, torch.version.cuda, torch.cuda.is_available())


def driver_problem(driver: str | None, cuda: str | None) -> str | None:
    """Why a driver cannot run a CUDA build, with the remedy; None if it can, or if nothing is known of it."""
    found = re.match(r"\d+", driver or "")
    major = int(cuda.split(".")[0]) if cuda else None
    oldest = OLDEST_DRIVER.get(major) if major is not None else None
    if found is None or oldest is None or int(found[0]) >= oldest:
        return None
    return (
        f"NVIDIA driver {driver} is too old for CUDA {cuda}, which needs {oldest} or newer; update the driver"
    )


def gpu_problem(state: GpuState) -> str | None:
    """Why torch cannot use the GPUs of a node that has some, with the remedy; None if it can."""
    if state.available:
        return None
    if state.cuda is None:
        return f"torch {state.torch} is a CPU build; install there with bootstrap.py --accelerator gpu"
    if state.driver is None:
        return "nvidia-smi lists no GPU; install NVIDIA's driver, or give the container its GPUs"
    return driver_problem(state.driver, state.cuda) or (
        f"torch {state.torch} for CUDA {state.cuda} finds no usable GPU under driver {state.driver}; run "
        "`nvidia-smi` and `python -c 'import torch; torch.cuda.init()'` there"
    )


def check_gpu_nodes() -> None:
    """Refuses a cluster in which Ray counts GPUs that torch cannot use.

    Without it the workers would die in `init_process_group`, minutes later, with an error of NCCL.

    Raises:
        InputError: With the node's address and the reason.
    """
    from lm_mixup.distributed.ray_cluster import nodes, on_every_node

    if any(node["Resources"].get("GPU", 0) > 0 for node in nodes()):
        check_states(on_every_node(gpu_state, (), _ANSWER_S))


def check_states(answers: Sequence[tuple[Mapping[str, Any], Any]]) -> None:
    """As `check_gpu_nodes`, for the nodes and their states."""
    for node, state in answers:
        if node["Resources"].get("GPU", 0) <= 0:
            continue
        address = node["NodeManagerAddress"]
        if not isinstance(state, GpuState):
            raise InputError(f"node {address} does not say whether torch can use its GPUs: {state}")
        if problem := gpu_problem(state):
            raise InputError(
                f"Ray counts GPUs on node {address}, but torch cannot use them: {problem}; or set "
                "ray.accelerator to cpu"
            )
