"""The command line: exit codes, one clear line an error, and answers in under a second."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lm_mixup.cli import app, input_error_in
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, " ".join((result.output + (result.stderr or "")).split())


def test_help_answers_in_under_a_second():
    """In processor time, which other work on the machine does not stretch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "lm_mixup.cli", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["augment", QUICKSTART, "--set", "augment.pool=nowhere.jsonl"], "nowhere.jsonl"),
        (["build", QUICKSTART, "--set", "build.sample=3"], "did you mean samples?"),
        (["train", QUICKSTART, "--set", "model.path=no/such/model/here"], "no/such/model/here"),
        (["build", QUICKSTART, "--until", "sft"], "--until sft"),
        (["train", QUICKSTART], "needs mixture"),
        (["train", QUICKSTART, "--set", "grpo.max_completion_length=4000"], "nano reads 4096 at most"),
        (["evaluate", QUICKSTART], "finetune needs select"),
        (["evaluate", QUICKSTART, "--set", "finetune.train=no.jsonl"], "finetune.train: there is no file"),
        (["evaluate", QUICKSTART, "--set", "finetune.model.path=nano-untrained"], "has no weights"),
        (["build", "nowhere.yaml"], "nowhere.yaml"),
        (["status", "nowhere"], "not a run directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str):
    if arguments[0] != "status":
        arguments = [*arguments, "--run-dir", str(tmp_path / "run")]
    code, output = call(*arguments)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output


def _finish(run: RunDir, name: str) -> None:
    from lm_mixup.core.run_dir import Outcome, summarise

    stage = run.stage(name)
    stage.begin("x")
    stage.finish(summarise(stage, "x", {}, 0, Outcome(rows_in=0, rows_out=0)))


def test_a_yaml_that_is_not_a_mapping(tmp_path: Path):
    path = tmp_path / "list.yaml"
    path.write_text("[1, 2]")
    code, output = call("build", str(path), "--run-dir", str(tmp_path / "run"))
    assert code == 2
    assert "must be a mapping" in output


def test_config_prints_what_reads_back():
    code = CliRunner().invoke(app, ["config", QUICKSTART, "--set", "seed=5"])
    assert code.exit_code == 0
    assert yaml.safe_load(code.stdout)["seed"] == 5


def test_status_lists_every_stage(tmp_path: Path):
    run = RunDir(tmp_path)
    run.write_json("run.json", {})
    _finish(run, "passages")
    code, output = call("status", str(tmp_path))
    assert code == 0
    for name in ("passages", "sft", "grpo", "select"):
        assert name in output


def test_fine_tuning_needs_no_other_stage_where_a_file_is_named():
    from lm_mixup.config import Config
    from lm_mixup.stages import BY_NAME, inputs_of, stages_of

    own = Config.model_validate({"finetune": {"train": "mine.jsonl"}})
    assert inputs_of(BY_NAME["finetune"], Config()) == ("select",)
    assert inputs_of(BY_NAME["finetune"], own) == ()
    assert stages_of("evaluate", own) == ("finetune",)
    assert "finetune" not in stages_of("run", own)


STOPPED = """
import signal
from lm_mixup.cli import app
from lm_mixup.config import RayConfig
from lm_mixup.distributed.ray_cluster import start_ray
from lm_mixup import pipeline

def wait(*_):
    start_ray(RayConfig(num_cpus=1, object_store_gib=0.2))
    print("up", flush=True)
    signal.pause()

pipeline.run_verb = wait
app()
"""


def test_a_terminated_run_ends_with_one_line(tmp_path: Path):
    command = [sys.executable, "-c", STOPPED, "build", QUICKSTART, "--run-dir", str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        out, told = process.communicate(timeout=60)
    lines = [line for line in (out + told).splitlines() if "Set ray log level" not in line]
    assert lines == ["stopped; the same command again goes on where it stopped"]
    assert process.returncode == 1


def test_credentials_in_urls_are_masked(tmp_path: Path):
    from lm_mixup.config import Config
    from lm_mixup.pipeline import Options, _write_run_json

    config = Config.model_validate(
        {"rate": {"backend": "openai", "base_url": "https://me:secret@judge.example/v1"}}
    )
    run = RunDir(tmp_path)
    _write_run_json(
        run, config, Options(command=("x", "--set", "rate.base_url=https://me:secret@j/")).command
    )
    text = json.dumps(run.read_json("run.json"))
    assert "secret" not in text
    assert "judge.example" in text


def test_an_input_error_is_found_behind_rays_wrapping():
    inner = InputError("pool: bad")

    class TaskError(Exception):
        cause = inner

    assert input_error_in(TaskError()) is inner
    assert input_error_in(ValueError("x")) is None
    outer = RuntimeError("outer")
    outer.__cause__ = TaskError()
    assert input_error_in(outer) is inner
