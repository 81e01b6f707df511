"""Every failed line of `doctor` says what to do, and sets the exit status."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from lm_mixup import doctor
from lm_mixup.cli import app
from lm_mixup.config import Config
from lm_mixup.core.run_dir import RunDir
from lm_mixup.distributed.gpus import GpuState
from lm_mixup.doctor import NodeState, check_hub, check_keys, check_node, check_run_folder, equal_versions

NO_GPU = GpuState((), None, "2.13.0+cpu", None, available=False)
GPUS = GpuState(("NVIDIA H100 80GB HBM3",) * 8, "580.65.06", "2.13.0", "13.0", available=True)
WHOLE = NodeState(dict.fromkeys([*doctor.PACKAGES, "vllm"], "1.0"), NO_GPU, disk_gb=100.0, shm_gb=8.0)


def failures(state: NodeState, counted_gpus: float | None = None, config: Config | None = None) -> list[str]:
    checks = check_node(state, config or Config(), counted_gpus=counted_gpus)
    return [f"{check.name}: {check.detail}" for check in checks if not check.ok]


def test_a_whole_machine_has_no_failure():
    assert failures(WHOLE) == []
    assert failures(replace(WHOLE, gpu=GPUS), counted_gpus=8) == []


@pytest.mark.parametrize(
    ("change", "counted", "said"),
    [
        (
            {"versions": {"torch": "2.13.0"}},
            None,
            "versions: not installed: ray, .*vllm; run python3 bootstrap",
        ),
        ({"disk_gb": 1.2}, None, r"disk: 1\.2 GB free; 5 GB are needed"),
        (
            {"shm_gb": 0.1},
            None,
            r"shm: 0\.1 GB free in /dev/shm; the object store takes 1\.1: docker run --shm-size",
        ),
        ({"gpu": replace(GPUS, driver="570.86.10", available=False)}, 8, "gpu: .*570.86.10 is too old.*580"),
        ({"gpu": NO_GPU}, 8, "gpu: torch 2.13.0.cpu is a CPU build; install"),
    ],
)
def test_each_fault_is_said_with_its_remedy(change, counted, said):
    (failure,) = failures(replace(WHOLE, **change), counted)
    assert re.match(said, failure)


def test_a_run_on_cpu_does_not_mind_a_broken_driver():
    broken = replace(WHOLE, gpu=replace(GPUS, driver="470.1", available=False))
    assert failures(broken, 8)
    assert failures(broken, 8, Config.model_validate({"ray": {"accelerator": "cpu"}})) == []


def test_keys_are_looked_for_and_never_told():
    config = Config.model_validate({"rate": {"backend": "openai", "model": "m", "api_key_env": "JUDGE_KEY"}})
    (missing,) = check_keys(config, {})
    assert not missing.ok and "JUDGE_KEY (rate.api_key_env) is not set; export it" in missing.detail
    (present,) = check_keys(config, {"JUDGE_KEY": "sk-secret"})
    assert present.ok and "sk-secret" not in present.detail
    assert check_keys(Config(), {}) == []


def test_a_hub_that_does_not_answer_is_a_fault_where_a_model_comes_from_it():
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    remote = Config.model_validate({"model": {"path": "Qwen/Qwen2.5-1.5B-Instruct"}})
    refused = check_hub(remote, dead)
    assert not refused.ok and "Qwen/Qwen2.5-1.5B-Instruct come from it" in refused.detail
    assert check_hub(Config(), dead).ok
    assert check_hub(remote, dead | {"HF_HUB_OFFLINE": "1"}).ok


def test_a_run_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    check = check_run_folder(RunDir(tmp_path / "file" / "run"))
    assert not check.ok and "choose another --run-dir" in check.detail
    assert check_run_folder(RunDir(tmp_path / "run")).ok
    assert list((tmp_path / "run").iterdir()) == []


def test_nodes_of_different_versions_are_named():
    other = replace(WHOLE, versions={**WHOLE.versions, "ray": "2.59"})
    check = equal_versions([("a", WHOLE), ("b", other)])
    assert not check.ok and "ray is 1.0 on a and 2.59 on b" in check.detail
    assert equal_versions([("a", WHOLE), ("b", WHOLE)]).ok


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_says_each_line_and_sets_the_exit_status(monkeypatch, tmp_path, broken):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    state = replace(WHOLE, disk_gb=0.5 if broken else 50.0)
    monkeypatch.setattr(doctor, "node_state", lambda folder: state)
    ended = CliRunner().invoke(app, ["doctor", "quickstart", "--run-dir", str(tmp_path), "--json"])
    assert ended.exit_code == int(broken)
    told = json.loads(ended.stdout)
    assert told["ok"] is not broken
    assert [check["name"] for check in told["checks"] if not check["ok"]] == (["disk"] if broken else [])
    plain = CliRunner().invoke(app, ["doctor", "quickstart", "--run-dir", str(tmp_path)])
    assert ("FAILED disk: 0.5 GB free" in plain.stdout) is broken


def test_a_cluster_that_is_not_named_is_an_error_of_input(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended = CliRunner().invoke(app, ["doctor", "--cluster", "--run-dir", str(tmp_path)])
    assert ended.exit_code == 2
