"""The four build stages on a real Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lm_mixup.config import BuildConfig, DataConfig, RateConfig, TeacherConfig
from lm_mixup.core.run_dir import RunDir, summarise
from lm_mixup.mixture.assemble import mixture
from lm_mixup.mixture.degrade import degrade
from lm_mixup.mixture.generate import generate
from lm_mixup.mixture.passages import passages

SAMPLES = 200
STAGES = ("passages", "generate", "degrade", "mixture")


def run(folder: Path, *, actors: int) -> RunDir:
    """Builds MIXTURE as the pipeline does; stages that are done are left alone."""
    config = BuildConfig.model_validate({"samples": SAMPLES, "num_actors": actors})
    rate, data = RateConfig(num_actors=actors), DataConfig(rows_per_part=64)
    run_dir = RunDir(folder)
    made = {name: run_dir.stage(name) for name in STAGES}
    work = {
        "passages": lambda out: passages(out, config, data, seed=0),
        "generate": lambda out: generate(made["passages"], out, config, rate, TeacherConfig(), data, seed=0),
        "degrade": lambda out: degrade(made["generate"], out, config, rate, TeacherConfig(), seed=0),
        "mixture": lambda out: mixture(made["generate"], made["degrade"], None, out, config, data, seed=0),
    }
    for name in STAGES:
        made[name].begin("same")
        made[name].finish(summarise(made[name], "same", {}, 0.0, work[name](made[name])))
    return run_dir


def contents(run_dir: RunDir) -> dict[str, bytes]:
    paths = [
        path for name in STAGES for kind in ("data", "rejected") for path in run_dir.stage(name).parts(kind)
    ]
    return {path: run_dir.read_bytes(path) for path in paths}


@pytest.fixture(scope="module")
def built(ray_session, tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), actors=1)


def test_counts_add_up(built):
    manifests = {name: built.stage(name).manifest() for name in STAGES}
    assert manifests["passages"].rows_out == 489
    for name in ("generate", "degrade"):
        m = manifests[name]
        assert m.rows_in == m.rows_out + m.rows_rejected
        assert m.rows_rejected == sum(m.rejected_by_reason.values())
    assert manifests["generate"].rows_in == SAMPLES
    assert len(built.stage("generate").parts()) > 1
    m = manifests["mixture"]
    assert m.rows_in == manifests["generate"].rows_out == m.rows_used + sum(m.left_out.values())
    assert m.rows_out == built.stage("mixture").read(["id"]).num_rows > 0.6 * SAMPLES


def test_two_actors_build_the_same_bytes(built, tmp_path):
    again = run(tmp_path, actors=2)
    assert contents(again) == contents(built)


def test_a_lost_part_is_made_again_and_the_rest_is_kept(built, tmp_path):
    shutil.copytree(built.path, tmp_path, dirs_exist_ok=True)
    run_dir = RunDir(tmp_path)
    for path in ("degrade/receipts/part-000001.json", "degrade/data/part-000001.parquet"):
        run_dir.remove(path)
    kept = Path(tmp_path, "degrade/data/part-000000.parquet").stat().st_mtime_ns
    run(tmp_path, actors=1)
    assert contents(run_dir) == contents(built)
    assert Path(tmp_path, "degrade/data/part-000000.parquet").stat().st_mtime_ns == kept
