"""The run's log: what every line has, where it goes, and that no key is in it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.run_log import LogPlace, close_log, current_place, log, open_from_environment, open_log


@pytest.fixture(autouse=True)
def closed():
    yield
    close_log()


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run" if request.param == "local" else f"memory://{tmp_path.name}/run")


def lines(run: RunDir) -> list[dict]:
    names = run.listing("logs")
    return [json.loads(line) for name in names for line in run.read_bytes(f"logs/{name}").splitlines()]


def test_each_line_names_run_stage_and_node(run: RunDir):
    open_log(LogPlace(run.uri, "abc", "rate", "driver"))
    say(" (on 2 nodes)", lead="rate", style="bold")
    log("part %d begins", 3)
    open_log(LogPlace(run.uri, "abc", "embed", "driver"))
    try:
        raise ValueError("no such row")
    except ValueError as error:
        log("part 4 failed", level=logging.ERROR, error=error)
    close_log()
    found = lines(run)
    assert [line["message"] for line in found] == ["rate (on 2 nodes)", "part 3 begins", "part 4 failed"]
    assert [(line["run"], line["stage"], line["role"]) for line in found] == [
        ("abc", "rate", "driver"),
        ("abc", "rate", "driver"),
        ("abc", "embed", "driver"),
    ]
    assert all(line["node"] and line["pid"] and line["time"].endswith("Z") for line in found)
    assert "ValueError: no such row" in found[2]["traceback"]
    assert len(run.listing("logs")) == 1


def test_an_actor_finds_the_log_in_its_environment(run: RunDir, monkeypatch):
    log("nowhere")
    open_from_environment()
    assert current_place() is None
    for name, value in LogPlace(run.uri, "abc", "grpo", "rollout").environment().items():
        monkeypatch.setenv(name, value)
    open_from_environment()
    log("engine starts")
    close_log()
    assert [(line["role"], line["message"]) for line in lines(run)] == [("rollout", "engine starts")]


def test_a_key_of_the_environment_is_not_in_it(run: RunDir, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-0123456789")
    open_log(LogPlace(run.uri, "abc", "rate", "driver"))
    try:
        raise ValueError("Incorrect API key provided: sk-0123456789")
    except ValueError as error:
        log("refused: sk-0123456789", level=logging.ERROR, error=error)
    close_log()
    (line,) = lines(run)
    assert "sk-0123456789" not in json.dumps(line) and "***" in line["message"]


def test_a_disk_that_is_full_ends_no_run_and_is_said_once(tmp_path: Path, capsys):
    folder = tmp_path / "run"
    open_log(LogPlace(str(folder), "abc", "rate", "driver"))
    folder.write_text("")  # a file where the folder has to be
    log("one")
    log("two")
    assert capsys.readouterr().err.count("cannot be written") == 1
    folder.unlink()
    log("three")
    assert [line["message"] for line in lines(RunDir(folder))] == ["one", "two", "three"]
