"""A run whose judge is behind a server: killed, stopped by its budget, finished; no row is rated twice.

One run directory and one server throughout. Two rate actors share one pace, and one cool-down.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
from chat_server import COMPLETION_TOKENS, GOOD, PROMPT_TOKENS, Answer, Seen, serving

from lm_mixup.core.run_dir import RunDir

TINY = Path(__file__).resolve().parents[1] / "tiny.yaml"
KEY = "sk-never-to-be-written-0123"
LIMIT_S = 200


def command(run: Path, url: str, *more: str) -> list[str]:
    settings = {
        "rate.backend": "openai",
        "rate.base_url": url,
        "rate.model": "m",
        "rate.api_key_env": "JUDGE_KEY",
        "rate.num_actors": "2",
        "rate.num_cpus": "0.5",
        "rate.concurrency": "4",
        "rate.max_tokens": "20",
        "rate.price_per_million": "{input: 1000, output: 2000}",
        "ray.num_cpus": "2",
        "ray.object_store_gib": "0.3",
    }
    words = [sys.executable, "-m", "lm_mixup.cli", "augment", str(TINY), "--run-dir", str(run)]
    words += ["--until", "rate", *more]
    return words + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | {"JUDGE_KEY": KEY, "COLUMNS": "400"}


def finish(words: list[str]) -> tuple[int, str]:
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=LIMIT_S)
    return done.returncode, done.stdout + done.stderr


class Meeting:
    """Keeps requests waiting until two processes have asked; then tells one of them that it is too fast."""

    def __init__(self) -> None:
        self.pids: set[int | None] = set()
        self.limited_at = 0.0
        self._lock, self._both = threading.Lock(), threading.Event()

    def answer(self, seen: Seen) -> Answer | None:
        """None once the two have met."""
        if self._both.is_set():
            return None
        with self._lock:
            self.pids |= {c.pid for c in psutil.net_connections("tcp") if c.laddr.port == seen.port}
            if len(self.pids) == 2 and not self._both.is_set():
                self.limited_at = time.monotonic()
                self._both.set()
                return Answer("busy", 429, {"retry-after": "2"})
        self._both.wait(LIMIT_S)
        return Answer(delay_s=0.5)  # by then the cool-down has begun


def command_lines() -> list[str]:
    """Of all processes of this machine."""
    return [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]


def test_a_run_killed_and_stopped_by_its_budget_pays_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    answered: Counter[str] = Counter()
    lock, half, meeting = threading.Lock(), threading.Event(), Meeting()

    def until_half(seen):
        met = meeting.answer(seen)
        if met is not None and met.status == 429:
            return met
        with lock:
            if sum(answered.values()) >= 70:
                half.set()
            else:
                answered[seen.body["messages"][1]["content"]] += 1
                return met or GOOD
        return Answer(delay_s=120)

    def count(seen):
        with lock:
            answered[seen.body["messages"][1]["content"]] += 1
        return Answer(delay_s=0.01)

    with serving(until_half) as server:
        log = tmp_path / "log.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command(run, server.url), stdout=file, stderr=file, env=environment(), start_new_session=True
            )
        try:
            assert half.wait(LIMIT_S), log.read_text()[-3000:]
            lines = command_lines()
            threading.Event().wait(1)  # the replies before are on their way into the files
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        server.answer = count
        assert any(str(run) in line for line in lines) and not [line for line in lines if KEY in line]
        since = [seen.at - meeting.limited_at for seen in server.seen]
        assert len(meeting.pids) == 2 and not [at for at in since if 0.8 < at < 1.9]  # both processes wait

        code, output = finish(command(run, server.url, "--max-cost", "14"))  # 0.14 a row: 100 rows
        assert code == 2, output
        (line,) = [line for line in output.splitlines() if "max_cost" in line]
        assert "rate.max_cost 14 is reached" in line and "Traceback" not in output
        assert 97 <= sum(answered.values()) <= 100
        before = len(server.seen)

        words = command(run, server.url, "--max-cost", "1000", "--set", "rate.requests_per_minute=1200")
        code, output = finish(words)
        assert code == 0, output
        times = sorted(seen.at for seen in server.seen[before:])

    assert set(answered.values()) == {1}  # no row twice
    manifest = RunDir(run).stage("rate").manifest()
    assert manifest is not None and manifest.rows_in == manifest.rows_out
    metrics = manifest.metrics
    assert metrics["rated"] == manifest.rows_in and metrics["unrated"] == 0
    rows = RunDir(run).stage("rate").read(["overall", "error", "rater"])
    assert set(rows["overall"].to_pylist()) == {8} and set(rows["rater"].to_pylist()) == {"m"}
    assert metrics["prompt_tokens"] == PROMPT_TOKENS * len(answered)
    assert metrics["completion_tokens"] == COMPLETION_TOKENS * len(answered)
    assert metrics["cost"] == round(0.14 * len(answered), 6)
    assert metrics["cache_hits"] > 0
    assert len(times) >= 10
    assert times[-1] - times[0] >= (len(times) - 1) * 0.05 * 0.9  # of both actors together
    for path in (*run.rglob("*"), log):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
    assert KEY not in output
    assert json.loads((run / "run.json").read_text())["config"]["rate"]["api_key_env"] == "JUDGE_KEY"
