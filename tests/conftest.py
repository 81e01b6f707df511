"""Fixtures shared by all tests. The real Ray is started once a session, with two CPUs."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["PATH"] = (
    f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # as `make` does
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("here", deadline=None)
settings.load_profile("here")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray cluster of two CPUs."""
    import ray

    from lm_mixup.config import RayConfig
    from lm_mixup.distributed.ray_cluster import start_ray

    start_ray(RayConfig(num_cpus=2, object_store_gib=0.5))
    yield ray
    ray.shutdown()


@pytest.fixture
def import_benchmark(monkeypatch):
    """Imports a benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def shared_data():
    """The folder of real data; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data not found at {SHARED_DATA}")
    return SHARED_DATA
