"""The jobs: what each hands to the command line, and how it ends."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys

import pytest
from manifests import ROOT

QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
JOBS = {
    "build_mixture": ("build", None),
    "train_sft": ("train", "sft"),
    "train_grpo": ("train", None),
    "augment": ("augment", None),
    "evaluate": ("evaluate", None),
    "pipeline": ("run", None),
}


@pytest.fixture
def signals():
    """A command that is stopped ignores further signals until it has ended: here it must not for ever."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_every_job_is_known():
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_runs_its_stages_on_the_jobs_cluster(name, tmp_path, monkeypatch, signals):
    from lm_mixup import pipeline

    calls = []

    def run_verb(verb, config, run, options):
        calls.append((verb, config.seed, run.uri, options.until, os.environ["RAY_ADDRESS"], options.command))
        raise KeyboardInterrupt  # as `ray job stop` ends it

    monkeypatch.setattr(pipeline, "run_verb", run_verb)
    monkeypatch.setenv("RAY_ADDRESS", "unset")
    monkeypatch.delenv("RAY_ADDRESS")
    verb, until = JOBS[name]
    given = ["run"] if name == "pipeline" else []
    arguments = [*given, QUICKSTART, "--run-dir", str(tmp_path), "--set", "seed=7"]
    monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 1
    ((ran, seed, uri, last, address, command),) = calls
    assert (ran, seed, uri, last, address) == (verb, 7, str(tmp_path), until, "auto")
    assert command[:2] == ("lm-mixup", verb)


def test_a_bad_config_is_exit_status_2_and_one_line(tmp_path):
    """From any folder, as a job that was submitted without a working directory."""
    command = [sys.executable, str(ROOT / "jobs" / "augment.py"), "nowhere.yaml"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr
