"""`kill -9` of the driver in one stage after another; the run ends as it should.

One run directory is used throughout: each command is killed in the middle of the next stage on the list, and
the last one is left to finish. No stage that was done before a kill is done again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lm_mixup.config import Config
from lm_mixup.core.run_dir import RunDir
from lm_mixup.stages import stages_of

TINY = Path(__file__).resolve().parents[1] / "tiny.yaml"
LIMIT_S = 300
STAGES = tuple(stages_of("run", Config()))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


# What tells that a stage is in the middle of its work.
MIDDLE: dict[str, Callable[[Path], bool]] = {
    "grpo": lambda run: lines(run / "grpo" / "metrics.jsonl") >= 3,
    "rate": lambda run: bool(list((run / "rate" / "receipts").glob("*.json"))),
}


def start(run: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lm_mixup.cli", "run", str(TINY), "--run-dir", str(run), *options]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (run.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes], run: Path, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert process.poll() is None, f"ended before {what}: {(run.parent / 'log.txt').read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"{what} was not reached"
        time.sleep(0.02)


def kill_in(run: Path, stage: str) -> None:
    process = start(run)
    wait_until(lambda: MIDDLE[stage](run), process, run, stage)
    process.send_signal(signal.SIGKILL)
    process.wait()


def manifests(run: Path) -> dict[str, tuple[int, dict]]:
    found = {}
    for stage in STAGES:
        path = run / stage / "manifest.json"
        if path.exists():
            found[stage] = (path.stat().st_mtime_ns, json.loads(path.read_text()))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos") / "run"


@pytest.mark.timeout(1200)
def test_a_run_killed_in_two_stages_finishes_and_redoes_none(run: Path):
    before: dict[str, tuple[int, dict]] = {}
    for stage in MIDDLE:
        kill_in(run, stage)
        now = manifests(run)
        assert stage not in now
        assert before.items() <= now.items(), f"a finished stage was done again on the way to {stage}"
        before = now
    process = start(run)
    assert process.wait(timeout=LIMIT_S) == 0, (run.parent / "log.txt").read_text()[-3000:]
    now = manifests(run)
    assert before.items() <= now.items()
    assert list(now) == list(STAGES)
    steps = [json.loads(line)["step"] for line in (run / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert (run / "report" / "index.html").stat().st_size > 100_000
    check_accounts(RunDir(run))


def check_accounts(run: RunDir) -> None:
    """Every stage that maps rows to rows accounts for each; merging stages say what was left out."""
    for stage in ("generate", "degrade", "ingest", "rate", "embed", "curate", "distill", "rate_distilled"):
        manifest = run.stage(stage).manifest()
        assert manifest is not None
        assert manifest.rows_in == manifest.rows_out + manifest.rows_rejected, stage
        assert manifest.rows_rejected == sum(manifest.rejected_by_reason.values()), stage
    for stage in ("mixture", "cluster", "select"):
        manifest = run.stage(stage).manifest()
        assert manifest is not None
        assert manifest.rows_used is not None
        assert manifest.rows_in == manifest.rows_used + sum(manifest.left_out.values()), stage
    grpo = run.stage("grpo").manifest()
    assert grpo is not None
    assert grpo.rows_out == (grpo.rows_used or 0) + sum(grpo.left_out.values())
    for line in run.read_bytes("select/train.jsonl").decode().splitlines():
        row = json.loads(line)
        assert row["prompt"].strip()
        assert row["completion"].strip()
        assert row["origin"] in {"distilled", "original"}
