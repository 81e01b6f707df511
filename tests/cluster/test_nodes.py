"""Several Ray nodes on one machine: jobs, kills, a disk that is not shared, a cut cable, keys and tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ray_nodes import ROOT, PartedNodes, RayNodes

from lm_mixup.core.run_dir import RunDir
from lm_mixup.train.tracking import read_metrics

TINY = ROOT / "tests" / "tiny.yaml"
LIMIT_S = 1500
ROWS = ("passages", "generate", "degrade", "mixture", "ingest", "rate", "embed", "cluster")
FAKE_KEY = "sk-fake-" + "0123456789abcdef"
is_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: namespaces and mounts")


def same_rows(left: Path, right: Path, stages=ROWS) -> None:
    for stage in stages:
        one, other = RunDir(left).stage(stage), RunDir(right).stage(stage)
        assert one.read().equals(other.read()), stage
        assert one.read(kind="rejected").equals(other.read(kind="rejected")), stage


def alone(run: Path, *options: str, verb: str = "run") -> None:
    """The same on this machine alone."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-m", "lm_mixup.cli", verb, str(TINY), "--run-dir", str(run), *options]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.timeout(3600)
def test_a_job_on_four_nodes_equals_a_run_on_one_byte_for_byte(tmp_path: Path):
    spread = ["--set", "grpo.mode=disaggregated", "--set", "grpo.rollout_actors=2"]
    spread += ["--set", "grpo.learner_ranks=2", "--set", "grpo.zero_stage=2", "--set", "rewards.num_actors=2"]
    with RayNodes(3, tmp_path) as nodes:
        command = [sys.executable, "jobs/pipeline.py", "run", str(TINY), "--run-dir", str(tmp_path / "four")]
        ended = nodes.submit([*command, "--until", "sft"], LIMIT_S)
        assert ended.returncode == 0, ended.stdout[-3000:]
        ended = nodes.submit([*command, *spread, "--until", "grpo"], LIMIT_S)
        assert ended.returncode == 0, ended.stdout[-3000:]
        ended = nodes.submit([*command, *spread], LIMIT_S)
        assert ended.returncode == 0, ended.stdout[-3000:]
    assert [line["step"] for line in read_metrics(tmp_path / "four/grpo/metrics.jsonl")] == [1, 2, 3, 4]
    logs = [json.loads(x) for f in (tmp_path / "four/logs").iterdir() for x in f.read_text().splitlines()]
    assert {line["role"] for line in logs if line["stage"] == "grpo"} >= {
        "driver",
        "rollout",
        "learner",
        "reward",
    }
    alone(tmp_path / "one", *spread, "--set", "ray.num_cpus=8")  # its actors share the cores there are
    same_rows(tmp_path / "four", tmp_path / "one")
    train = "select/train.jsonl"
    assert (tmp_path / "four" / train).read_bytes() == (tmp_path / "one" / train).read_bytes()


@pytest.mark.timeout(1800)
def test_a_node_killed_in_a_build_costs_no_row(tmp_path: Path):
    with RayNodes(2, tmp_path) as nodes:
        options = (
            "build",
            str(TINY),
            "--run-dir",
            str(tmp_path / "killed"),
            "--set",
            "data.rows_per_part=16",
        )
        process = nodes.begin(tmp_path / "log.txt", *options)
        deadline = time.monotonic() + LIMIT_S
        while not list((tmp_path / "killed" / "generate" / "receipts").glob("*.json")):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        nodes.kill("worker1")
        assert process.wait(LIMIT_S) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    alone(tmp_path / "calm", "--set", "data.rows_per_part=16", verb="build")
    same_rows(tmp_path / "killed", tmp_path / "calm", ("passages", "generate", "degrade", "mixture"))


@is_root
@pytest.mark.timeout(1200)
def test_a_node_with_a_disk_of_its_own_is_named_within_30_s(tmp_path: Path):
    """Its run directory is another folder, mounted over the shared one for this node alone."""
    run = tmp_path / "run"
    run.mkdir()

    class Apart(RayNodes):
        def prefix(self, name: str) -> list[str]:
            mount = f'mount -t tmpfs -o size=64m none {run} && exec "$@"'
            return ["unshare", "--mount", "sh", "-c", mount, "sh"] if name == "worker0" else []

    with Apart(1, tmp_path) as nodes:
        for verb in ("build", "augment"):
            started = time.monotonic()
            # With a policy named, `augment` has all it reads, and comes as far as the nodes.
            options = ("--run-dir", str(run), "--set", "augment.policy=nano")
            ended = nodes.run(verb, str(TINY), *options, timeout=LIMIT_S)
            assert ended.returncode == 2, ended.stderr
            line = " ".join(ended.stderr.split())
            assert "does not see the driver's file" in line and "node " in line, line
            assert "Traceback" not in ended.stderr
            print(f"{verb}: refused after {time.monotonic() - started:.0f} s")
        assert [path.name for path in run.glob("*/manifest.json")] == []


@is_root
@pytest.mark.timeout(1800)
def test_a_cable_out_for_30_seconds_costs_no_row(tmp_path: Path):
    with PartedNodes(1, tmp_path) as nodes:
        options = ("build", str(TINY), "--run-dir", str(tmp_path / "cut"), "--set", "data.rows_per_part=16")
        process = nodes.begin(tmp_path / "log.txt", *options)
        deadline = time.monotonic() + LIMIT_S
        while not list((tmp_path / "cut" / "generate" / "receipts").glob("*.json")):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        nodes.cut("worker0", off=True)
        time.sleep(30)
        nodes.cut("worker0", off=False)
        assert process.wait(LIMIT_S) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    alone(tmp_path / "calm", "--set", "data.rows_per_part=16", verb="build")
    same_rows(tmp_path / "cut", tmp_path / "calm", ("passages", "generate", "degrade", "mixture"))


@pytest.mark.timeout(1800)
def test_no_token_or_a_wrong_one_is_refused_and_no_key_is_left_behind(tmp_path: Path):
    with RayNodes(1, tmp_path, environment={"JUDGE_API_KEY": FAKE_KEY}) as nodes:
        jobs = f"http://127.0.0.1:{nodes.dashboard}/api/jobs/"

        def status(token: str | None) -> int:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            try:
                return urllib.request.urlopen(
                    urllib.request.Request(jobs, headers=headers), timeout=60
                ).status
            except urllib.error.HTTPError as error:
                return error.code

        assert status(nodes.environment["RAY_AUTH_TOKEN"]) == 200
        assert {status(None), status("0" * 64)} <= {401, 403}
        right = nodes.environment
        nodes.environment = right | {"RAY_AUTH_TOKEN": "0" * 64}
        assert nodes.submit(["true"], 300).returncode != 0
        ended = nodes.run("build", str(TINY), "--run-dir", str(tmp_path / "run"), timeout=LIMIT_S)
        assert ended.returncode != 0 and not (tmp_path / "run" / "passages").exists()
        nodes.environment = right

        command = [sys.executable, "jobs/pipeline.py", "build", str(TINY), "--run-dir", str(tmp_path / "run")]
        ended = nodes.submit([*command, "--until", "generate"], LIMIT_S)
        assert ended.returncode == 0, ended.stdout[-3000:]
        token = right["RAY_AUTH_TOKEN"]
        request = urllib.request.Request(jobs, headers={"Authorization": f"Bearer {token}"})
        said = urllib.request.urlopen(request, timeout=60).read()
        found = [
            path for top in (tmp_path / "run", nodes.folder) for path in top.rglob("*") if path.is_file()
        ]
        assert len(found) > 50
        holders = [str(path) for path in found if FAKE_KEY.encode() in path.read_bytes()]
        assert holders == []
        assert FAKE_KEY.encode() not in said


@is_root
@pytest.mark.timeout(1200)
def test_a_full_disk_is_one_line_and_resumes_once_there_is_room(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], check=True)
    try:
        filler = disk / "filler"
        filler.write_bytes(b"0" * (2_000_000))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        command = [sys.executable, "-m", "lm_mixup.cli", "build", str(TINY), "--run-dir", str(disk / "run")]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert ended.returncode in (1, 2), ended.stderr
        assert "No space left on device" in ended.stderr or "no space left" in ended.stderr
        assert "Traceback" not in ended.stderr, ended.stderr
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
        alone(tmp_path / "calm", verb="build")
        same_rows(disk / "run", tmp_path / "calm", ("passages", "generate", "degrade", "mixture"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@is_root
@pytest.mark.timeout(1800)
def test_a_shared_memory_that_fills_up_is_one_line_and_resumes_once_there_is_room(tmp_path: Path):
    """Ray's node process dies of it (SIGBUS), and with it the driver: in silence, but for its last words."""
    run, log = tmp_path / "run", tmp_path / "log.txt"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    mount = 'mount -t tmpfs -o size=400m none /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-m", "lm_mixup.cli", "build"]
    command += [str(TINY), "--run-dir", str(run), "--set", "ray.object_store_gib=0.2"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    deadline = time.monotonic() + LIMIT_S
    while not (run / "generate" / "started.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    with Path(f"/proc/{process.pid}/root/dev/shm/filler").open("wb") as filler, pytest.raises(OSError):
        filler.write(b"0" * 500_000_000)  # to the last page
    status, said = process.wait(LIMIT_S), log.read_text()
    assert status in (0, 1) and "Traceback" not in said, said
    assert status == 0 or "failed: " in said, said
    with log.open("wb") as file:
        again = subprocess.run(
            command, stdout=file, stderr=file, env=environment, timeout=LIMIT_S, check=False
        )
    assert again.returncode == 0, log.read_text()[-2000:]
    alone(tmp_path / "calm", verb="build")
    same_rows(run, tmp_path / "calm", ("passages", "generate", "degrade", "mixture"))
    print(f"with a full /dev/shm: exit status {status}")
