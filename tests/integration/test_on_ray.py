"""What only a real Ray can show: dying workers, the nodes' own view, placement on a GPU, a stop by signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from lm_mixup.core.run_dir import RunDir
from lm_mixup.distributed import ray_cluster
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.distributed.run_dir_probe import check_run_dir, run_dir_problems

QUICKSTART = str(Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml")


def make_doomed(counter: str):
    def work(item: int) -> PartResult:
        if item == 2:
            with open(counter, "a") as file:  # noqa: PTH123
                file.write("x")
            os._exit(1)
        return PartResult(pa.table({"n": [item]}), rows_in=1)

    return work


def test_a_part_that_kills_its_worker_is_tried_three_times_and_named(ray_session, tmp_path):
    stage, counter = RunDir(tmp_path / "run").stage("doomed"), tmp_path / "tries"
    with pytest.raises(RuntimeError, match=r"doomed: a worker died 3 times of one part, 2;"):
        map_parts(stage, [0, 1, 2], make_doomed, {"counter": str(counter)})
    assert counter.read_text() == "xxx"
    until = time.monotonic() + 300
    while (free := ray_session.available_resources().get("CPU", 0)) < 2 and time.monotonic() < until:
        time.sleep(0.5)
    assert free == 2, "its worker was started once more and holds its CPU"


def test_on_a_cluster_of_one_node_nothing_is_asked(ray_session, tmp_path):
    check_run_dir(RunDir(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_real_nodes_see_what_the_driver_writes(ray_session, tmp_path):
    assert run_dir_problems(RunDir(tmp_path)) == []


def test_a_node_that_is_lost_while_all_are_asked_is_no_problem(ray_session, tmp_path, monkeypatch):
    (here,) = ray_cluster.nodes()
    ghost = here | {"NodeID": "0" * 56}
    seen = iter([[here, ghost], [here]])
    monkeypatch.setattr(ray_cluster, "nodes", lambda: next(seen))
    assert run_dir_problems(RunDir(tmp_path)) == []


ONE_GPU = """
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In
import lm_mixup.grpo.placement as placement
from lm_mixup.config import GrpoConfig, RewardsConfig

placement.check_gpu_nodes = lambda: None  # the GPU is a number of Ray's alone
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
got = placement.reserve(
    GrpoConfig(placement_timeout_s=20, cpus_per_actor=1), RewardsConfig(num_gpus=1, num_cpus=0.1)
)

@ray.remote
class Actor:
    def gpus(self):
        return ray.get_gpu_ids()

def start(options, bundle):
    options = {key: value for key, value in options.items() if key != "runtime_env"}
    return Actor.options(scheduling_strategy=In(got.group, bundle), **options).remote()

actors = [
    start(got.learner_options, 0),
    start(got.rollout_options, got.first_rollout_bundle),
    start({"num_cpus": 0.1, "num_gpus": got.reward_gpus}, got.reward_bundles[0]),
]
print(ray.get([actor.gpus.remote() for actor in actors], timeout=60))
"""


def test_learner_engine_and_rewards_are_placed_on_one_gpu():
    ended = subprocess.run([sys.executable, "-c", ONE_GPU], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.splitlines()[-1] == "[[0], [0], [0]]"


STOPPED = """
import signal
from lm_mixup.cli import app
from lm_mixup.config import RayConfig
from lm_mixup.distributed.ray_cluster import start_ray
from lm_mixup import pipeline

def wait(*_):
    start_ray(RayConfig(num_cpus=1, object_store_gib=0.2))
    print("up", flush=True)
    signal.pause()

pipeline.run_verb = wait
app()
"""


def test_a_terminated_run_ends_with_one_line(tmp_path: Path):
    command = [sys.executable, "-c", STOPPED, "build", QUICKSTART, "--run-dir", str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        out, told = process.communicate(timeout=60)
    lines = [line for line in (out + told).splitlines() if "Set ray log level" not in line]
    assert lines == ["stopped; the same command again goes on where it stopped"]
    assert process.returncode == 1


def test_a_local_ray_refuses_who_has_no_token(ray_session, tmp_path: Path):
    address = ray_session.get_runtime_context().gcs_address
    stranger = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    join = f"import ray; ray.init(address='{address}'); print('joined')"
    answer = subprocess.run(
        [sys.executable, "-c", join],
        env=stranger | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode != 0 and "joined" not in answer.stdout
    assert "InvalidAuthToken" in answer.stderr
