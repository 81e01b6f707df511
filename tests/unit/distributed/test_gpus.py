"""What is said of GPUs that Ray counts and torch cannot use, and what counts as a cluster with GPUs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from lm_mixup.config import RayConfig
from lm_mixup.core.errors import InputError
from lm_mixup.distributed import ray_cluster
from lm_mixup.distributed.gpus import GpuState, check_states, driver_problem, gpu_problem, query_driver

GOOD = GpuState(("NVIDIA H100 80GB HBM3",), "580.82.07", "2.13.0", "13.0", available=True)
BROKEN = replace(GOOD, available=False)


def fake_nvidia_smi(folder: Path, lines: str, status: int = 0) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{lines}'\nexit {status}\n")
    program.chmod(0o755)


def test_the_driver_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    fake_nvidia_smi(tmp_path, "NVIDIA H100 80GB HBM3, 570.86.10\\nNVIDIA H100 80GB HBM3, 570.86.10\\n")
    names, driver = query_driver()
    assert (names, driver) == (("NVIDIA H100 80GB HBM3",) * 2, "570.86.10")
    assert "570.86.10 is too old for CUDA 13.0, which needs 580" in str(driver_problem(driver, "13.0"))
    assert driver_problem(driver, "12.8") is None
    assert driver_problem("580.65.06", "13.0") is None
    fake_nvidia_smi(tmp_path, "NVIDIA-SMI has failed, because …\\n", status=9)
    assert query_driver() == ((), None)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (replace(BROKEN, cuda=None, torch="2.13.0+cpu"), r"torch 2\.13\.0\+cpu is a CPU build"),
        (replace(BROKEN, driver="550.54.15"), r"driver 550\.54\.15 is too old for CUDA 13\.0"),
        (replace(BROKEN, names=(), driver=None), "nvidia-smi lists no GPU"),
        (BROKEN, "finds no usable GPU under driver 580"),
        (TimeoutError("no answer in 120 s"), "does not say .* no answer in 120 s"),
    ],
)
def test_a_node_with_unusable_gpus_is_refused_by_name_and_reason(state, reason):
    with_gpu = {"NodeManagerAddress": "10.0.0.7", "Resources": {"GPU": 8.0}}
    without = {"NodeManagerAddress": "10.0.0.8", "Resources": {"CPU": 8.0}}
    check_states([(with_gpu, GOOD), (without, replace(BROKEN, cuda=None))])
    with pytest.raises(InputError, match=rf"10\.0\.0\.7.*{reason}"):
        check_states([(without, BROKEN), (with_gpu, state)])
    assert gpu_problem(GOOD) is None


@pytest.mark.parametrize(
    ("present", "declared", "accelerator", "expected"),
    [
        (0, 0, "auto", False),
        (8, 0, "auto", True),
        (0, 8, "auto", True),  # a group of GPU nodes that is scaled to 0
        (8, 8, "cpu", False),
        (0, 0, "gpu", True),
    ],
)
def test_the_accelerator_of_a_run(monkeypatch, present, declared, accelerator, expected):
    from ray._private.state import state

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(
        ray, "cluster_resources", lambda: {"CPU": 4.0, **({"GPU": present} if present else {})}
    )
    monkeypatch.setattr(
        state, "get_max_resources_from_cluster_config", lambda: {"GPU": declared} if declared else None
    )
    monkeypatch.setattr(ray_cluster, "_accelerator", "auto")
    ray_cluster.start_ray(RayConfig(accelerator=accelerator))
    assert ray_cluster.has_gpu() is expected
