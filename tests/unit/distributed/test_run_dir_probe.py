"""A run directory that a node does not share is refused before the first stage, with the node's name."""

from __future__ import annotations

import pytest

from lm_mixup.config import RayConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.distributed import ray_cluster, run_dir_probe
from lm_mixup.distributed.run_dir_probe import probe_node, refuse_relative, run_dir_problems

NODE = {"NodeManagerAddress": "10.0.0.7", "NodeID": "0123456789"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(run_dir_probe, "_SEEN_S", 0.0)


def answer_from(monkeypatch, folder):
    """The nodes run the probe in a folder of theirs, as if that were mounted there."""

    def run_there(task, arguments, timeout_s):
        return [(NODE, task(RunDir(folder), *arguments[1:]))]

    monkeypatch.setattr(ray_cluster, "on_every_node", run_there)


def test_a_shared_folder_passes_and_nothing_is_left(monkeypatch, tmp_path):
    answer_from(monkeypatch, tmp_path)
    assert run_dir_problems(RunDir(tmp_path)) == []
    assert list((tmp_path / "probe").iterdir()) == []


def test_a_folder_of_the_nodes_own_is_refused_by_name(monkeypatch, tmp_path):
    answer_from(monkeypatch, tmp_path / "other")
    (problem,) = run_dir_problems(RunDir(tmp_path / "run"))
    assert "node 10.0.0.7 (01234567) does not see the driver's file" in problem


def test_a_node_whose_writes_go_elsewhere_is_refused(monkeypatch, tmp_path):
    def run_there(task, arguments, timeout_s):
        return [(NODE, "a-name-that-was-written-on-another-disk"), (NODE, PermissionError("read-only"))]

    monkeypatch.setattr(ray_cluster, "on_every_node", run_there)
    lost, refused = run_dir_problems(RunDir(tmp_path))
    assert "what node 10.0.0.7 (01234567) writes does not reach the driver" in lost
    assert "read-only" in refused


def test_a_stale_file_of_the_same_name_does_not_count(tmp_path):
    run = RunDir(tmp_path)
    run.write_bytes("probe/x/driver", b"of another driver")
    assert probe_node(run, "probe/x", "token") == ""


@pytest.mark.parametrize(
    ("uri", "refused"), [("runs/mine", True), ("/mnt/runs", False), ("memory://r", False)]
)
def test_a_relative_run_directory_on_a_named_cluster(monkeypatch, uri, refused):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    refuse_relative(RunDir(uri), RayConfig())
    if refused:
        with pytest.raises(InputError, match=r"runs/mine: is relative"):
            refuse_relative(RunDir(uri), RayConfig(address="auto"))
    else:
        refuse_relative(RunDir(uri), RayConfig(address="auto"))
