"""`kill -9` of each kind of GRPO worker in one run: it ends with the metrics of an undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from child_processes import children_like

TINY = Path(__file__).resolve().parents[1] / "tiny.yaml"
LIMIT_S = 600


def start(run: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "lm_mixup.cli",
        "run",
        str(TINY),
        "--run-dir",
        str(run),
        "--until",
        "grpo",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (run.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert process.poll() is None, f"ended before {what}: {log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"{what} was not reached"
        time.sleep(0.02)


def kill_worker(process: subprocess.Popen[bytes], kind: str) -> None:
    """SIGKILL to every actor of a kind that a command has started."""
    found = children_like(kind, of=process.pid)
    assert found, f"no {kind} runs"
    for child in found:
        child.kill()


def steps_done(run: Path) -> int:
    path = run / "grpo" / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def grpo_logs(run: Path) -> dict[str, list[dict]]:
    """What GRPO wrote of its steps, without what the clock decides."""
    logs = {}
    for name in ("metrics", "validation"):
        read = [json.loads(line) for line in (run / "grpo" / f"{name}.jsonl").read_text().splitlines()]
        timed = ("timing_s", "tokens_per_second")
        logs[name] = [{k: v for k, v in line.items() if not k.startswith(timed)} for line in read]
    return logs


@pytest.mark.timeout(1800)
def test_grpo_ends_as_before_when_each_kind_of_its_workers_is_killed(tmp_path: Path):
    run, again, log = tmp_path / "undisturbed" / "run", tmp_path / "run", tmp_path / "log.txt"
    run.parent.mkdir()
    assert start(run).wait(timeout=LIMIT_S) == 0, (run.parent / "log.txt").read_text()[-3000:]
    shutil.copytree(run, again)
    shutil.rmtree(again / "grpo")
    process = start(again)
    for steps, kind in enumerate(("RolloutActor", "_RewardActor", "LearnerRank"), start=1):
        wait_until(lambda: steps_done(again) >= steps, process, log, f"step {steps} of grpo")  # noqa: B023
        kill_worker(process, kind)
    assert process.wait(timeout=LIMIT_S) == 0, log.read_text()[-3000:]
    said = log.read_text()
    assert "rollout actor 0 died or hangs; starting a new one" in said
    assert "learner rank 0 died; restarting the learner from the checkpoint of step 2" in said
    assert grpo_logs(again) == grpo_logs(run)
