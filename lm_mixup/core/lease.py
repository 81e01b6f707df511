"""One run at a time owns a run directory: `RUN/lease.json` says which, and since when.

The owner renews the lease every 15 s. A second run is refused with the owner's name. A lease is stale, and is
taken over, when its process was on this machine and is dead, or when it has not been renewed for 90 s: of
other machines age is all that can be seen, on NFS as on an object store.

An owner that finds another lease in place of its own stops. So two runs that both took a lease for stale
end as one, and so does `--take-over`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.core.remote import storage_errors
from lm_mixup.core.run_dir import RunDir

LEASE = "lease.json"
BEAT_S = 15.0
STALE_S = 90.0
_SETTLE_S = 1.0  # in which another run that saw no lease either has written its own


class LeaseLost(RuntimeError):
    """Another run has taken the run directory over."""


@dataclass(frozen=True)
class Lease:
    """Who owns a run directory.

    Attributes:
        owner: A random name of the run.
        host: The machine, or pod, of its driver, for people.
        machine: The boot of the machine and the container on it that the pid belongs to.
        pid: The driver's process there.
        process_started: When that process started, in ticks since the machine did: pids are used again.
        since: When the run took the lease, seconds since 1970.
        heartbeat: When it last renewed it.
    """

    owner: str
    host: str
    machine: str
    pid: int
    process_started: int
    since: float
    heartbeat: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


@contextmanager
def hold_lease(run: RunDir, *, take_over: bool = False, beat_s: float = BEAT_S) -> Iterator[Lease]:
    """Owns the run directory inside the `with` block.

    Args:
        run: The run directory.
        take_over: Whether to take it from a run that is alive. That run stops at its next heartbeat.
        beat_s: Seconds between heartbeats.

    Raises:
        InputError: Another run owns it.
        LeaseLost: Another run has taken it over meanwhile; the block was interrupted.
    """
    lease = _acquire(run, take_over=take_over, beat_s=beat_s)
    keeper = _Keeper(run, lease, beat_s)
    try:
        with _interruptible():
            keeper.start()
            yield lease
    except KeyboardInterrupt:
        if keeper.lost is not None:
            raise LeaseLost(
                f"{run.uri} was taken over by another run: {keeper.lost}; this one has stopped"
            ) from None
        raise
    finally:
        keeper.stop()
        held = read_lease(run)
        if held is not None and held.owner == lease.owner:
            run.remove(LEASE)


def _acquire(run: RunDir, *, take_over: bool, beat_s: float) -> Lease:
    found = read_lease(run)
    if found is not None and not is_stale(run, found, beat_s):
        if not take_over:
            raise InputError(
                f"{run.uri} belongs to another run: {found}. Wait for it, or stop it; if it is gone, its "
                f"lease expires {STALE_S:.0f} s after its last heartbeat; --take-over takes it at once"
            )
        say(f"taking {run.uri} over from {found}")
    now = time.time()
    pid = os.getpid()
    lease = Lease(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, process_started(pid), now, now)
    if found is not None or not _create(run, lease):
        run.write_json(LEASE, asdict(lease))
        # Until another run that saw the same has written its own; or until the one that had it has noticed.
        time.sleep(1.5 * beat_s if found is not None and take_over else _SETTLE_S)
    held = read_lease(run)
    if held is None or held.owner != lease.owner:
        raise InputError(f"{run.uri} was taken by another run just now: {held}")
    return lease


def _create(run: RunDir, lease: Lease) -> bool:
    """Writes the lease if there is none: by a hard link, which is atomic on NFS too, or a conditional write.

    Returns:
        Whether it did: some mounts have no hard links, some stores no conditional writes.
    """
    if not run.is_local:
        try:
            content = json.dumps(asdict(lease), indent=2).encode()
            run.fs.pipe_file(f"{run.path}/{LEASE}", content, mode="create")
        except FileExistsError:
            raise InputError(f"{run.uri} was taken by another run just now: {read_lease(run)}") from None
        return False  # a store that does not know the condition has ignored it: look once more
    scratch = f"{LEASE}.{lease.owner}.tmp"
    run.write_json(scratch, asdict(lease))
    try:
        os.link(f"{run.path}/{scratch}", f"{run.path}/{LEASE}")
    except FileExistsError:
        raise InputError(f"{run.uri} was taken by another run just now: {read_lease(run)}") from None
    except OSError:
        return False
    finally:
        run.remove(scratch)
    return True


def read_lease(run: RunDir) -> Lease | None:
    """The lease, or None where nobody owns the run directory."""
    run.fs.invalidate_cache(run.path)
    try:
        value: Any = run.read_json(LEASE)
    except FileNotFoundError:  # released between the look and the read
        return None
    return None if value is None else Lease(**value)


def is_stale(run: RunDir, lease: Lease, beat_s: float = BEAT_S) -> bool:
    """Whether the run of a lease is gone.

    Clocks of machines differ, so an old heartbeat alone proves nothing; one that stays as it is for
    longer than a heartbeat does.
    """
    if lease.machine == _machine():
        return process_started(lease.pid) != lease.process_started
    if time.time() - lease.heartbeat < STALE_S:
        return False
    time.sleep(1.5 * beat_s)
    return read_lease(run) in (lease, None)


def _machine() -> str:
    """The boot and the container whose pids one sees: two pods of a host differ, and hosts of one name."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def process_started(pid: int) -> int:
    """When a process of this machine started, in clock ticks since boot; -1 where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return -1
    state, *fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return -1 if state in ("Z", "X") else int(fields[18])


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lets the keeper stop the main thread by SIGUSR1: a background job may be deaf to SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


class _Keeper(threading.Thread):
    """Renews the lease until it is stopped, or finds it lost; then it stops the thread that holds it."""

    def __init__(self, run: RunDir, lease: Lease, beat_s: float) -> None:
        super().__init__(name="lease", daemon=True)
        self.lost: Lease | None = None
        self._run = run
        self._lease = lease
        self._beat_s = beat_s
        self._holder = threading.current_thread()
        self._stopped = threading.Event()
        self._failing = False

    def run(self) -> None:
        while not self._stopped.wait(self._beat_s):
            try:
                held = read_lease(self._run)
                if held is not None and held.owner != self._lease.owner:
                    self.lost = held
                    say(f"{self._run.uri} was taken over by another run: {held}")
                    if self._holder is threading.main_thread():
                        signal.pthread_kill(self._holder.ident or 0, signal.SIGUSR1)
                    return
                self._run.write_json(LEASE, asdict(replace(self._lease, heartbeat=time.time())))
                self._failing = False
            except Exception as error:
                if not isinstance(error, (*storage_errors(), ValueError)):
                    raise
                if not self._failing:  # a shared disk that is away for a moment ends no run
                    say(f"the lease of {self._run.uri} could not be renewed ({error}); trying again")
                self._failing = True

    def stop(self) -> None:
        """Ends the thread; a heartbeat under way is waited for, so that none is written after the release."""
        self._stopped.set()
        self.join()
