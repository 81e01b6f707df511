"""Several Ray nodes on this machine, each with a temporary folder of its own and killable alone.

`RayNodes` puts all of them on this machine's address. `PartedNodes` gives each a network namespace behind a
bridge (root is needed), so that one can be cut off.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_S = 300
_STARTS = 5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RayNodes:
    """A head and workers. Each is a session of processes: `kill` ends one as a power cut would."""

    def __init__(self, workers: int, folder: Path, cpus: int = 2, environment: dict[str, str] | None = None):
        # Ray's sockets lie below: their paths may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="rn-", dir="/tmp"))
        self.logs = folder
        self.cpus, self.port, self.dashboard = cpus, free_port(), free_port()
        self.environment = (
            os.environ
            | {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "RAY_TRAIN_V2_ENABLED": "1",
                "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
                "DS_ACCELERATOR": "cpu",
                "PYTHONPATH": str(ROOT),
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            }
            | (environment or {})
        )
        self.environment.pop("RAY_ADDRESS", None)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start("head")
        for number in range(workers):
            self.start(f"worker{number}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def prefix(self, name: str) -> list[str]:
        """What a node's command begins with."""
        return []

    def _options(self, name: str) -> list[str]:
        if name == "head":
            dashboard = ("--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard))
            return ["--head", "--port", str(self.port), *dashboard]
        return ["--address", self.address]

    def start(self, name: str) -> None:
        """Starts a node and waits until it is up: two that join at the same moment can miss each other.

        Ray gives a start 30 seconds, which no setting changes: on a busy machine it is tried again.
        """
        for _ in range(_STARTS - 1):
            if self._started(name):
                return
        assert self._started(name), (self.logs / f"{name}.log").read_text()[-2000:]

    def _started(self, name: str) -> bool:
        log = self.logs / f"{name}.log"
        command = [
            *self.prefix(name),
            str(Path(sys.executable).parent / "ray"),
            *("start", "--block", "--num-cpus", str(self.cpus), "--object-store-memory", "200000000"),
            *("--temp-dir", str(self.folder / name), "--dashboard-agent-listen-port", str(free_port())),
            *self._options(name),
        ]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=self.environment, start_new_session=True
            )
        self.processes[name] = process
        deadline = time.monotonic() + START_S
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill(name)
                return False
            time.sleep(0.2)
        return True

    def kill(self, name: str) -> None:
        """SIGKILL to everything of a node."""
        process = self.processes.pop(name)
        for member in self.members(process.pid):
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()

    @staticmethod
    def members(session: int) -> list[int]:
        """The processes of a node: its session, and what its raylet put into sessions of their own."""
        import psutil

        try:
            top = psutil.Process(session)
        except psutil.NoSuchProcess:
            return []
        return [child.pid for child in top.children(recursive=True)] + [session]

    def run(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """`lm-mixup` with these arguments as a driver on this machine."""
        return subprocess.run(
            [*self.prefix("head"), sys.executable, "-m", "lm_mixup.cli", *arguments],
            env=self.environment | {"RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def begin(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """As `run`, and returns at once."""
        with log.open("ab") as file:
            return subprocess.Popen(
                [*self.prefix("head"), sys.executable, "-m", "lm_mixup.cli", *arguments],
                env=self.environment | {"RAY_ADDRESS": self.address},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def submit(self, command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, from the checkout."""
        address = f"http://127.0.0.1:{self.dashboard}"
        return subprocess.run(
            [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", address, "--", *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=ROOT,
        )

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class PartedNodes(RayNodes):
    """Each node in a network namespace of its own, `10.77.N.*`; `cut` takes one off the bridge and back."""

    def __init__(self, workers: int, folder: Path, cpus: int = 2) -> None:
        self.tag = secrets.token_hex(2)
        self.net = 1 + secrets.randbelow(250)
        self._names = ["head", *(f"worker{n}" for n in range(workers))]
        self._ip("link", "add", f"b{self.tag}", "type", "bridge")
        self._ip("link", "set", f"b{self.tag}", "up")
        for number, name in enumerate(self._names, start=1):
            space, outside = f"{self.tag}-{name}", self._link(name)
            self._ip("netns", "add", space)
            self._ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            self._ip("link", "set", outside, "master", f"b{self.tag}", "up")
            for line in (
                ("link", "set", "lo", "up"),
                ("addr", "add", f"10.77.{self.net}.{number}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
            ):
                self._ip("-n", space, *line)
        super().__init__(workers, folder, cpus)

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def _link(self, name: str) -> str:
        return f"v{self.tag}{self._names.index(name)}"

    @property
    def address(self) -> str:
        return f"10.77.{self.net}.1:{self.port}"

    def prefix(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", f"{self.tag}-{name}"]

    def _options(self, name: str) -> list[str]:
        own = f"10.77.{self.net}.{self._names.index(name) + 1}"
        return [*super()._options(name), "--node-ip-address", own]

    def cut(self, name: str, *, off: bool) -> None:
        """Takes a node's cable out, or puts it back."""
        self._ip("link", "set", self._link(name), "down" if off else "up")

    def stop(self) -> None:
        super().stop()
        for name in self._names:
            subprocess.run(["ip", "netns", "del", f"{self.tag}-{name}"], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"b{self.tag}"], check=False, capture_output=True)
