"""One run owns a run directory: who is refused, which lease is stale, and who stops when it is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lm_mixup.core import lease as leases
from lm_mixup.core.errors import InputError
from lm_mixup.core.lease import LEASE, STALE_S, Lease, hold_lease, process_started, read_lease
from lm_mixup.core.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import signal, sys, time
from lm_mixup.core.lease import hold_lease
from lm_mixup.core.run_dir import RunDir
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job of a script
with hold_lease(RunDir(sys.argv[1]), beat_s=0.2):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@pytest.fixture
def other(run: RunDir):
    """Another process that holds the run directory."""
    command = [sys.executable, "-c", HOLD, run.path]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def elsewhere(monkeypatch) -> Lease:
    """A lease of a machine whose processes cannot be seen from here."""
    monkeypatch.setattr(leases, "_SETTLE_S", 0.01)
    return Lease("theirs", "gpu-7", "boot-7 pid:[7]", 42, 1000, time.time(), time.time())


def test_a_lease_is_there_while_it_is_held_and_gone_after(run):
    with hold_lease(run, beat_s=0.02) as lease:
        assert json.loads((Path(run.path) / LEASE).read_text())["pid"] == os.getpid()
        time.sleep(0.3)
        held = read_lease(run)
        assert held is not None
        assert held.heartbeat > lease.heartbeat
        assert replace(held, heartbeat=0.0) == replace(lease, heartbeat=0.0)
    assert list(Path(run.path).iterdir()) == []


def test_it_is_given_back_when_the_run_fails(run):
    with pytest.raises(ValueError, match="no row"), hold_lease(run):
        raise ValueError("no row")
    assert read_lease(run) is None


def test_a_second_run_is_told_who_holds_it_where_and_since_when(run, other):
    with pytest.raises(InputError) as refused, hold_lease(run):
        pass
    held = read_lease(run)
    assert held is not None
    message = str(refused.value)
    assert "\n" not in message
    for part in (
        run.uri,
        f"process {other.pid} on {held.host}",
        time.strftime("since %Y-%m-%d"),
        "--take-over",
    ):
        assert part in message
    assert other.poll() is None


def test_the_lease_of_a_killed_process_is_taken_over_at_once(run, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert read_lease(run) is not None
    started = time.monotonic()
    with hold_lease(run) as lease:
        assert lease.pid == os.getpid()
    assert time.monotonic() - started < 10


def test_a_pid_that_is_used_again_is_not_the_run(run, monkeypatch):
    monkeypatch.setattr(leases, "_SETTLE_S", 0.01)
    mine = process_started(os.getpid())
    assert mine > 0
    old = Lease("old", "here", leases._machine(), os.getpid(), mine - 1, 1000, time.time())
    run.write_json(LEASE, asdict(old))
    with hold_lease(run) as lease:
        assert lease.owner != "old"


def test_no_process_has_started_that_is_not_there():
    assert process_started(2**22 + 1) == -1
    process = subprocess.Popen([sys.executable, "-c", ""])
    assert process_started(process.pid) > 0
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked: a zombie
    assert process_started(process.pid) == -1
    process.wait()


@pytest.mark.parametrize("uri", ["", "memory://"])
@pytest.mark.parametrize("age", [0.0, STALE_S - 5, -3600.0])  # the last: that machine's clock is ahead
def test_a_lease_of_another_machine_holds_while_it_is_young(elsewhere, tmp_path, uri, age):
    run = RunDir(f"{uri}{tmp_path}")
    run.write_json(LEASE, asdict(replace(elsewhere, heartbeat=time.time() - age)))
    with pytest.raises(InputError, match="process 42 on gpu-7"), hold_lease(run, beat_s=0.02):
        pass


@pytest.mark.parametrize("uri", ["", "memory://"])
def test_a_lease_of_another_machine_that_stays_old_is_taken_over(elsewhere, tmp_path, uri):
    run = RunDir(f"{uri}{tmp_path}")
    run.write_json(LEASE, asdict(replace(elsewhere, heartbeat=time.time() - STALE_S - 1)))
    with hold_lease(run, beat_s=0.02) as lease:
        held = read_lease(run)
        assert held is not None
        assert held.owner == lease.owner != "theirs"
    assert read_lease(run) is None


def test_a_lease_that_seems_old_but_beats_is_not_taken_over(elsewhere, run):
    """That machine's clock is behind by more than a lease lives."""
    ended = threading.Event()

    def beat():
        while not ended.wait(0.02):
            run.write_json(LEASE, asdict(replace(elsewhere, heartbeat=time.time() - 2 * STALE_S)))

    run.write_json(LEASE, asdict(replace(elsewhere, heartbeat=time.time() - 2 * STALE_S)))
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="gpu-7"), hold_lease(run, beat_s=0.2):
            pass
    finally:
        ended.set()
        thread.join()


def test_who_is_taken_over_stops_and_leaves_the_new_lease_alone(run, other):
    with hold_lease(run, take_over=True, beat_s=0.4) as lease:
        _, told = other.communicate(timeout=30)
        assert other.returncode == 1
        assert "LeaseLost" in told
        assert f"process {os.getpid()}" in told
        held = read_lease(run)
        assert held is not None
        assert held.owner == lease.owner


def test_of_many_that_start_at_once_one_gets_it(run):
    barrier = threading.Barrier(8)

    def start():
        barrier.wait()
        try:
            return leases._acquire(run, take_over=False, beat_s=15)
        except InputError:
            return None

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            won = [lease for lease in pool.map(lambda _: start(), range(8)) if lease is not None]
        assert len(won) == 1
        assert [path.name for path in Path(run.path).iterdir()] == [LEASE]
        run.remove(LEASE)


def test_a_mount_without_hard_links_has_leases_too(run, monkeypatch):
    def link(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(leases, "_SETTLE_S", 0.01)
    monkeypatch.setattr(leases.os, "link", link)
    with hold_lease(run) as lease:
        assert read_lease(run) == lease
    assert list(Path(run.path).iterdir()) == []


def test_of_two_that_find_a_stale_lease_the_one_whose_own_is_gone_stops(elsewhere, run, monkeypatch):
    run.write_json(LEASE, asdict(replace(elsewhere, heartbeat=time.time() - 2 * STALE_S)))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:  # after it has written its own, another one writes too
            run.write_json(LEASE, asdict(replace(elsewhere, owner="faster")))

    monkeypatch.setattr(leases.time, "sleep", sleep)
    with (
        pytest.raises(InputError, match="just now: process 42 on gpu-7"),
        hold_lease(run, beat_s=0.02),
    ):
        pass


def test_a_disk_that_is_away_for_a_moment_ends_no_run(run, monkeypatch, capsys):
    write = RunDir.write_json
    failed = []

    def fail_twice(self, relative, value):
        if len(failed) < 2 and threading.current_thread().name == "lease":
            failed.append(relative)
            raise OSError("stale file handle")
        write(self, relative, value)

    monkeypatch.setattr(RunDir, "write_json", fail_twice)
    with hold_lease(run, beat_s=0.02) as lease:
        deadline = time.monotonic() + 20
        while (held := read_lease(run)) is None or held.heartbeat == lease.heartbeat:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert failed == [LEASE] * 2
    assert capsys.readouterr().err.count("stale file handle") == 1


def test_the_command_line_refuses_a_second_run_in_one_line(run, other):
    command = [
        sys.executable,
        "-m",
        "lm_mixup.cli",
        "build",
        "quickstart",
        "--run-dir",
        run.path,
        "--until",
        "passages",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert f"belongs to another run: process {other.pid} on " in " ".join(done.stderr.split())
    assert not run.exists("run.json")
