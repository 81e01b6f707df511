"""The command line: exit codes, one clear line an error, and answers in under a second."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lm_mixup.cli import app
from lm_mixup.core.errors import InputError, input_error_in
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
        (["build", QUICKSTART, "--until", "mixtrue"], "did you mean mixture?"),
        (["build", "quikstart"], "did you mean quickstart?"),
        (["augment", QUICKSTART, "--set", "rate.backend=openai"], "rate.model is not set"),
        (["config", QUICKSTART, "--explain", "grpo.betta"], "did you mean beta?"),
        (["config", QUICKSTART, "--explain", "seed.x"], "seed is not a section"),
        (["init", QUICKSTART], "exists; name another file"),
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
    if arguments[0] not in ("status", "config", "init"):
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
    from lm_mixup.stages import stages_of

    own = Config.model_validate({"finetune": {"train": "mine.jsonl"}})
    assert stages_of("evaluate", Config())["finetune"].inputs == ("select",)
    assert stages_of("evaluate", own)["finetune"].inputs == ()
    assert tuple(stages_of("evaluate", own)) == ("finetune",)
    assert "finetune" not in stages_of("run", own)


def test_credentials_in_urls_are_masked(tmp_path: Path):
    from lm_mixup.config import Config
    from lm_mixup.pipeline import Options, _write_run_json

    config = Config.model_validate(
        {"rate": {"backend": "openai", "base_url": "https://me:secret@judge.example/v1"}}
    )
    run = RunDir(tmp_path)
    _write_run_json(
        run, config, Options(command=("x", "--set", "rate.base_url=https://me:secret@j/")).command, "id"
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


def test_results_go_to_stdout_and_as_json(tmp_path: Path):
    run = RunDir(tmp_path)
    run.write_json("run.json", {})
    _finish(run, "passages")
    plain = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert "passages" in plain.stdout and "passages" not in plain.stderr
    found = json.loads(CliRunner().invoke(app, ["status", str(tmp_path), "--json"]).stdout)
    assert found["passages"]["rows_out"] == 0 and found["select"] is None
    config = json.loads(CliRunner().invoke(app, ["config", QUICKSTART, "--json"]).stdout)
    assert config["model"]["path"] == "nano"
    schema = json.loads(CliRunner().invoke(app, ["config", QUICKSTART, "--schema"]).stdout)
    assert set(config) <= set(schema["properties"])


def test_version_explain_and_diff():
    from lm_mixup import __version__

    assert __version__ in CliRunner().invoke(app, ["--version"]).stdout
    told = CliRunner().invoke(app, ["config", QUICKSTART, "--explain", "select.budget"]).stdout
    assert "value: 40" in told and "default: '3%'" in told
    assert (
        "cluster.max_size" in CliRunner().invoke(app, ["config", "quickstart", "--explain", "cluster"]).stdout
    )
    differing = (
        CliRunner().invoke(app, ["config", "quickstart", "--set", "seed=4", "--diff", "quickstart"]).stdout
    )
    assert differing == "seed: 4 (there 0)\n"


def test_init_writes_a_config_that_loads_and_keeps_the_comments(tmp_path: Path):
    from lm_mixup.config.load import load_config

    file = tmp_path / "mine.yaml"
    result = CliRunner().invoke(app, ["init", str(file), "--pool", "my #1.jsonl", "--policy", "org/x"])
    assert result.exit_code == 0, result.output
    config = load_config(file)
    assert (config.augment.pool, config.augment.policy) == ("my #1.jsonl", "org/x")
    assert config.grpo == load_config("quickstart").grpo
    assert "# The whole pipeline on two CPU cores" in file.read_text()


@pytest.mark.parametrize("where", ["file/run", "file", "/proc/run"])
def test_a_run_directory_that_cannot_be_written_is_one_line(tmp_path: Path, where: str):
    (tmp_path / "file").touch()
    code, output = call("build", QUICKSTART, "--run-dir", str(tmp_path / where))
    assert code == 2
    assert "cannot be written" in output and "Traceback" not in output


def test_a_stage_without_output_fails_the_run_and_says_why(tmp_path: Path, monkeypatch):
    from lm_mixup.core.run_dir import Outcome
    from lm_mixup.distributed import ray_cluster
    from lm_mixup.stages import Stage

    nothing = Outcome(rows_in=7, rows_out=0, left_out={"too_short": 6, "not_a_row": 1})
    monkeypatch.setattr(Stage, "call", lambda *_: nothing)
    monkeypatch.setattr(ray_cluster, "start_ray", lambda config: None)
    code, output = call("build", QUICKSTART, "--run-dir", str(tmp_path / "run"))
    assert code == 1
    assert "passages: not one of 7 rows came out (too_short 6, not_a_row 1)" in output
    assert RunDir(tmp_path / "run").stage("passages").manifest() is None


def test_the_first_cause_is_shown_and_a_full_disk_does_not_hide_it(tmp_path: Path, monkeypatch):
    from lm_mixup import pipeline

    def fail(*_):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("a hint of the framework") from error

    monkeypatch.setattr(pipeline, "run_verb", fail)
    monkeypatch.setattr(Path, "write_text", fail_to_write)
    code, output = call("build", QUICKSTART, "--run-dir", str(tmp_path))
    assert code == 1
    assert "No space left on device" in output and "Traceback" not in output


def fail_to_write(*_, **__):
    raise OSError(28, "No space left on device")


def test_the_demonstration_model_is_refused_on_an_open_pool(tmp_path: Path):
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps({"prompt": "Name a fox.", "completion": "Red fox."}) + "\n")
    asked = ["augment", QUICKSTART, "--set", f"augment.pool={pool}", "--run-dir", str(tmp_path / "run")]
    for policy in ([], ["--set", "augment.policy=nano"]):
        code, output = call(*asked, *policy)
        assert code == 2
        assert "understands the closed world alone" in output
    code, output = call(*asked, "--demo-policy")
    assert "needs grpo or sft" in output  # allowed, but this run has trained none
