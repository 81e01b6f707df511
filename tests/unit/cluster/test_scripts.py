"""The shell scripts of a cluster: when a run is tried again, which logs are kept, and what Slurm starts."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from manifests import ROOT, tool

CLUSTER = ROOT / "cluster"
SCRIPTS = sorted([*CLUSTER.glob("*.sh"), CLUSTER / "slurm.sbatch"])
RETRY = str(CLUSTER / "retry.sh")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(
        [tool("shellcheck"), "--severity=warning", str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_script_can_be_run(script):
    assert script.stat().st_mode & stat.S_IXUSR


# ---- retry.sh ----------------------------------------------------------------------------------------------


@contextmanager
def _started(command: list[str], **options):
    """A process that does not outlive a test that fails."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def _await(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


def _tries(folder: Path, statuses: list[int], **settings: str) -> tuple[int, int]:
    """The exit status, and how often a command was run that ends with these statuses in turn."""
    log = folder / "tries"
    log.write_text("")
    cases = " ".join(f"{number}) exit {status};;" for number, status in enumerate(statuses, start=1))
    command = f'echo x >>"{log}"; case $(wc -l <"{log}") in {cases} esac; exit 99'
    environment = {**os.environ, "RETRY_WAIT_S": "0", **settings}
    done = subprocess.run(
        ["sh", RETRY, "sh", "-c", command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, len(log.read_text().split())


@pytest.mark.parametrize(
    ("statuses", "settings", "ends"),
    [
        ([0], {}, (0, 1)),
        ([2], {}, (2, 1)),  # a bad config stays one
        ([1, 0], {}, (0, 2)),
        ([1, 2], {}, (2, 2)),
        ([1, 137, 1], {}, (1, 3)),  # 137: killed, as by the kernel that has no memory left
        ([1], {"RETRIES": "0"}, (1, 1)),
        ([1, 1, 1, 1, 0], {"RETRIES": "4"}, (0, 5)),
    ],
)
def test_what_is_tried_again(tmp_path, statuses, settings, ends):
    assert _tries(tmp_path, statuses, **settings) == ends


def test_arguments_arrive_as_they_were(tmp_path):
    done = subprocess.run(
        ["sh", RETRY, "printf", "%s|", "a b", "", "$HOME"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "a b||$HOME|"


def test_a_job_that_is_stopped_ends_and_is_not_tried_again(tmp_path):
    """What `ray job stop` sends reaches the command, which ends in order."""
    command = f"trap 'echo stopped; exit 1' TERM; echo up; touch {tmp_path}/up; while :; do sleep 0.05; done"
    with _started(["sh", RETRY, "sh", "-c", command], stdout=subprocess.PIPE) as process:
        _await(tmp_path / "up")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    assert out.split() == ["up", "stopped"]
    assert process.returncode == 143


# ---- keep_logs.sh ------------------------------------------------------------------------------------------


def test_logs_are_kept_as_the_pod_ends(tmp_path):
    session = tmp_path / "ray" / "session_2026-01-01"
    (session / "logs" / "events").mkdir(parents=True)
    (session / "sockets").mkdir()
    (session / "sockets" / "raylet").write_text("a socket")
    (session / "logs" / "gcs.out").write_text("begun\n")
    (tmp_path / "ray" / "session_latest").symlink_to(session)
    kept = tmp_path / "kept" / "pod-7"
    environment = {**os.environ, "POD_NAME": "pod-7", "KEEP_EVERY_S": "3600"}
    command = ["sh", str(CLUSTER / "keep_logs.sh"), str(tmp_path / "ray"), str(tmp_path / "kept")]
    with _started(command, env=environment) as process:
        _await(kept / session.name / "gcs.out")
        with (session / "logs" / "gcs.out").open("a") as log:
            log.write("ended\n")
        (session / "logs" / "events" / "late.log").write_text("why")
        time.sleep(0.2)  # the shell is at its `wait` again
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
    assert (kept / session.name / "gcs.out").read_text() == "begun\nended\n"
    assert (kept / session.name / "events" / "late.log").read_text() == "why"
    assert [path.name for path in kept.iterdir()] == [session.name]
    assert not (kept / session.name / "sockets").exists()
