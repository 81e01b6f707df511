"""Trackers: they show the log as it is, also after a resume, and a missing one is noticed at once."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from lm_mixup.cli import app
from lm_mixup.config import (
    Config,
    ModelConfig,
    SftConfig,
    TrackingConfig,
)
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.train.checkpoint import (
    SftJob,
)
from lm_mixup.train.tracking import append_metrics, check_tracking, open_trackers, read_metrics, trim_metrics

QUICKSTART = str(Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml")
BOARD = TrackingConfig()
WANDB = TrackingConfig(report_to=["wandb"], project="p", name="group")


def line(step: int, loss: float) -> dict:
    return {"step": step, "loss": loss, "grad_norm": None}


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def test_tensorboard_shows_the_log_of_a_resumed_run_and_nothing_twice(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), open_trackers(tmp_path, BOARD, {}, []) as write:
        for step in (1, 2, 3):
            write(line(step, float(step)))
        write({"step": 3, "eval_loss": 9.0})
        raise KeyboardInterrupt
    time.sleep(1.1)  # files are told apart and ordered by the second of their making
    kept = [line(1, 1.0), line(2, 2.0)]
    with open_trackers(tmp_path, BOARD, {}, kept) as write:
        write(line(3, 30.0))
        write(line(4, 40.0))
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    with pytest.raises(KeyError):
        curve(tmp_path, "grad_norm")


def test_a_tracker_that_is_added_later_gets_the_earlier_steps(tmp_path: Path):
    lines = [{"step": 0, "eval/reward": 0.5}, line(1, 1.0), {"step": 2, "eval/reward": 0.75}, line(2, 2.0)]
    with open_trackers(tmp_path, BOARD, {}, lines):
        pass
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 2.0)]
    assert curve(tmp_path, "eval/reward") == [(0, 0.5), (2, 0.75)]


def test_none_asked_for_is_none_opened(tmp_path: Path):
    with open_trackers(tmp_path, TrackingConfig(report_to=[]), {}, [line(1, 1.0)]) as write:
        write(line(2, 2.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_package_is_one_line_before_any_work(tmp_path: Path, monkeypatch, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    config = TrackingConfig(report_to=[package])
    with pytest.raises(InputError, match=f"the package {package} is not installed"):
        check_tracking(config)
    with pytest.raises(InputError, match="not installed"), open_trackers(tmp_path, config, {}, []):
        pass
    settings = ["--set", f"tracking.report_to=[{package}]"]
    run = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", QUICKSTART, "--run-dir", str(run), *settings])
    assert result.exit_code == 2
    assert f"{package} is not installed" in " ".join((result.output + (result.stderr or "")).split())
    assert not run.exists()


def test_trackers_do_not_decide_what_a_stage_is():
    config = Config.model_validate({"tracking": {"report_to": ["wandb"]}})
    assert config.identity() == Config().identity()
    with pytest.raises(ValueError, match="report_to"):
        TrackingConfig(report_to=["mlflow"])


class Recorder(ModuleType):
    """Stands in for the package `wandb`: records what it is asked, and drops a step that is not later."""

    class Error(Exception):
        """As the package's own."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = SimpleNamespace()  # type: ignore[assignment]
        self.runs: list[SimpleNamespace] = []
        self.refusal = ""

    def Settings(self, **settings: object) -> object:
        return settings

    def init(self, **asked: object) -> SimpleNamespace:
        if self.refusal:
            raise self.Error(self.refusal)
        run = SimpleNamespace(asked=asked, logged=[], ended=None)
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda exit_code: setattr(run, "ended", exit_code)
        self.runs.append(run)
        return run


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    module = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_goes_on_under_its_id_and_is_sent_no_step_twice(tmp_path: Path, recorder: Recorder):
    folder = tmp_path / "demo" / "sft"
    folder.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), open_trackers(folder, WANDB, {"lr": 1}, []) as write:
        for step in (1, 2, 3):
            write(line(step, 1.0))
        write({"step": 3, "eval_loss": 9.0})
        raise KeyboardInterrupt
    with open_trackers(folder, WANDB, {"lr": 1}, [line(1, 1.0)]) as write:  # killed before a checkpoint
        write(line(2, 1.0))
    with open_trackers(folder, WANDB, {"lr": 1}, [line(1, 1.0)]) as write:
        for step in (2, 3, 4):
            write(line(step, 1.0))
    first, second, third = recorder.runs
    assert [step for step, _ in first.logged] == [1, 2, 3, 3]
    assert (first.logged[0][1], first.logged[3][1]) == ({"loss": 1.0}, {"eval_loss": 9.0})
    assert [step for step, _ in second.logged] == []
    assert [step for step, _ in third.logged] == [4]
    assert (first.ended, third.ended) == (1, 0)
    asked = third.asked
    assert asked["id"] == first.asked["id"] and asked["resume"] == "allow"
    assert (asked["project"], asked["group"], asked["name"], asked["job_type"]) == (
        "p",
        "group",
        "group/sft",
        "sft",
    )
    assert asked["dir"] == str(folder) and asked["config"] == {"lr": 1}
    with open_trackers(tmp_path / "demo", WANDB, {}, []):
        pass
    assert recorder.runs[-1].asked["id"] != first.asked["id"]


def test_wandb_that_does_not_start_is_one_line(tmp_path: Path, recorder: Recorder):
    recorder.refusal = "api_key not configured\n(no-tty)"
    message = r"api_key not configured \(no-tty\).*WANDB_MODE=offline"
    with pytest.raises(InputError, match=message) as caught, open_trackers(tmp_path, WANDB, {}, []):
        pass
    assert "\n" not in str(caught.value)


def test_the_real_wandb_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb", reason="wandb is an optional extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for steps in ((1, 2), (2, 3)):
        with open_trackers(tmp_path, WANDB, {"lr": 1}, []) as write:
            for step in steps:
                write(line(step, 1.0))
    identity = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert json.loads((tmp_path / "wandb.json").read_text())["step"] == 3
    files = list((tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert files and all(file.stat().st_size for file in files)


# ---- the log of the SFT workers, followed by the driver ----------------------------------------------------


def log(path: Path, *lines: dict) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def wait_until(done, seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not done() and time.monotonic() < ends:
        time.sleep(0.01)
    assert done()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SftJob:
    from lm_mixup.train import sft

    monkeypatch.setattr(sft, "_POLL_S", 0.01)
    return SftJob(RunDir(tmp_path).stage("sft"), SftConfig(), ModelConfig(), "base", 0)


def test_what_workers_log_is_mirrored_once_though_a_worker_is_replaced(job: SftJob):
    from lm_mixup.train.sft import _progress_bar

    seen: list[dict] = []
    evaluated = {"step": 2, "eval_loss": 0.5}
    log(job.metrics, line(1, 1.0), line(2, 2.0))
    with _progress_bar(job, 6, 1, seen.append):
        wait_until(lambda: len(seen) == 1)
        log(job.metrics, line(1, 1.0), line(2, 2.0), evaluated, line(3, 3.0), line(4, 4.0))
        wait_until(lambda: len(seen) == 4)
        log(job.metrics, line(1, 1.0), line(2, 2.0), evaluated)  # the step of its last checkpoint
        time.sleep(0.1)
        log(job.metrics, line(1, 1.0), line(2, 2.0), evaluated, *(line(step, step) for step in (3, 4, 5, 6)))
    assert seen == [line(2, 2.0), evaluated, *(line(step, step) for step in (3, 4, 5, 6))]


def test_a_tracker_that_fails_is_not_passed_over(job: SftJob):
    from lm_mixup.train.sft import _progress_bar

    called = threading.Event()

    def mirror(values: dict) -> None:
        called.set()
        raise OSError("disk full")

    log(job.metrics, line(1, 1.0))
    with pytest.raises(OSError, match="disk full"), _progress_bar(job, 2, 0, mirror):
        assert called.wait(20)


def test_metrics_after_the_resumed_step_are_dropped_and_a_cut_line_is_ignored(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "rew')
    assert trim_metrics(path, 2) == [{"step": 1}, {"step": 2}]
    append_metrics(path, {"step": 3, "reward": 0.5})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "reward": 0.5}]


def test_a_resumed_log_holds_no_step_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4)] + [{"step": 4, "eval_loss": 1.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    assert read_metrics(path) == lines
    trim_metrics(path, 2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    trim_metrics(tmp_path / "none.jsonl", 0)
    assert read_metrics(tmp_path / "none.jsonl") == []
