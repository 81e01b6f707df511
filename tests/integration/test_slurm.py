"""The batch script starts the real Ray over an allocation; Slurm's own commands stand for themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from manifests import ROOT

CLUSTER = ROOT / "cluster"
SRUN = """#!/bin/bash
# Slurm's srun on one machine: runs the command with the name of the node that was asked for.
while [[ ${1:-} == --* ]]; do
    case $1 in --nodelist=*) export SLURMD_NODENAME=${1#*=} ;; esac
    shift
done
exec "$@"
"""
SCONTROL = "#!/bin/sh\nprintf 'localhost\\nworker\\n'\n"


@pytest.fixture
def slurm(tmp_path):
    """The environment of a batch script on two nodes, both of them this machine."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    root = tmp_path / "root"
    (root / "jobs").mkdir(parents=True)
    job = (
        "import sys, ray; ray.init(log_to_driver=False); "
        "print('ARGS', sys.argv[1:], ray.cluster_resources()['CPU'])"
    )
    (root / "jobs" / "pipeline.py").write_text(job)
    number = os.getpid() % 20000
    short = tempfile.mkdtemp(prefix="s", dir="/tmp")  # Ray's sockets allow paths of 107 bytes
    yield {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(root),
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST": "localhost,worker",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_GPUS_ON_NODE": "0",
        "LM_MIXUP_TMP": short,
    }
    shutil.rmtree(short)


def test_slurm_starts_ray_over_the_allocation_and_takes_it_down(slurm, tmp_path):
    script = str(CLUSTER / "slurm.sbatch")
    command = ["bash", script, "run", "a config.yaml", "--set", "seed=1"]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ARGS ['run', 'a config.yaml', '--set', 'seed=1'] 2.0" in done.stdout  # a CPU of each node
    kept = tmp_path / "root" / "runs" / "ray-logs" / slurm["SLURM_JOB_ID"]
    assert sorted(path.name for path in kept.iterdir()) == ["localhost", "worker"]
    assert list(kept.glob("localhost/gcs_server*"))
    assert list(Path(slurm["LM_MIXUP_TMP"]).iterdir()) == []
    token = [word for word in (done.stdout + done.stderr).split() if len(word) == 64]
    assert token == []
