"""A whole run at an `s3://` URI, killed in SFT and in GRPO, goes on with nothing but the URI.

Each start has folders of its own for scratch files and models, as if it were on another node. It ends with
the rows and metrics of a run on a disk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from object_store import BUCKET, s3_server

from lm_mixup.core.run_dir import RunDir
from lm_mixup.train.tracking import read_stage_metrics

pytest.importorskip("s3fs")
pytest.importorskip("moto")

TINY = Path(__file__).resolve().parents[1] / "tiny.yaml"
LIMIT_S = 1200
ROWS = (
    "passages",
    "generate",
    "degrade",
    "mixture",
    "ingest",
    "rate",
    "cluster",
    "distill",
    "rate_distilled",
)


def start(run: str, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir()
    environment = os.environ | {"LM_MIXUP_SCRATCH": str(folder), "LM_MIXUP_CACHE": str(folder / "cache")}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "lm_mixup.cli", "run", str(TINY), "--run-dir", run]
    with (folder.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    assert process.wait(timeout=LIMIT_S) == 0, (folder / "log.txt").read_text()[-3000:]


def kill_once_there(process: subprocess.Popen[bytes], run: RunDir, pattern: str, folder: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not run.fs.glob(f"{run.path}/{pattern}"):
        assert process.poll() is None, (folder / "log.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, f"{pattern} was not reached"
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()


def without_timings(lines: list[dict]) -> list[dict]:
    timed = ("timing_s", "tokens_per_second")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


@pytest.mark.timeout(3600)
def test_a_run_at_a_uri_goes_on_with_the_uri_alone(tmp_path: Path):
    with s3_server():
        uri = f"s3://{BUCKET}/whole"
        run = RunDir(uri)
        kill_once_there(start(uri, tmp_path / "a"), run, "sft/checkpoints/*/complete.json", tmp_path)
        kill_once_there(start(uri, tmp_path / "b"), run, "grpo/checkpoints/*/state.json", tmp_path)
        finish(start(uri, tmp_path / "c"), tmp_path)
        finish(start(str(tmp_path / "disk"), tmp_path / "d"), tmp_path)
        disk = RunDir(tmp_path / "disk")
        for stage in ROWS:
            there, here = run.stage(stage), disk.stage(stage)
            assert there.read().equals(here.read()), stage
            assert there.read(kind="rejected").equals(here.read(kind="rejected")), stage
        assert run.read_bytes("select/train.jsonl") == disk.read_bytes("select/train.jsonl")
        for stage in ("sft", "grpo"):
            lines = without_timings(read_stage_metrics(run.stage(stage)))
            assert lines == without_timings(read_stage_metrics(disk.stage(stage)))
            assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
            for name in ("model.safetensors", "config.json"):
                assert run.read_bytes(f"{stage}/model/{name}") == disk.read_bytes(f"{stage}/model/{name}")
        manifest = run.stage("sft").manifest()
        assert manifest is not None and "sft/model/model.safetensors" in manifest.files
        assert (
            json.loads(run.read_bytes("run.json"))["seed"] == json.loads(disk.read_bytes("run.json"))["seed"]
        )
        left = [path.name for folder in "abc" for path in (tmp_path / folder).glob("lm_mixup-*/*/*/*/*")]
        print(f"scratch left: {left}")
