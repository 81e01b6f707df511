"""A run whose judge is behind a server: killed, stopped by its budget, finished; no row is rated twice.

One run directory and one server throughout. Two rate actors share one pace.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from chat_server import COMPLETION_TOKENS, GOOD, PROMPT_TOKENS, Answer, serving

from lm_mixup.runs import RunDir

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


def test_a_run_killed_and_stopped_by_its_budget_pays_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    answered: Counter[str] = Counter()
    lock, half = threading.Lock(), threading.Event()

    def until_half(seen):
        with lock:
            if sum(answered.values()) >= 70:
                half.set()
            else:
                answered[seen.body["messages"][1]["content"]] += 1
                return GOOD
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
            threading.Event().wait(1)  # the replies before are on their way into the files
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        server.answer = count

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
    assert metrics["rated"] == manifest.rows_in and metrics["failed"] == 0
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
