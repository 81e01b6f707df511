"""The arms of every experiment: their keys exist, and each differs from the others."""

from __future__ import annotations

import json

import pytest

from lm_mixup.api import with_values
from lm_mixup.config import Config
from lm_mixup.config.load import load_config
from lm_mixup.core import schemas
from lm_mixup.core.run_dir import Receipt, RunDir
from lm_mixup.experiments.arms import EXPERIMENTS, Arm, whole_pool
from lm_mixup.stages import all_stages
from lm_mixup.stages.stage import value_at

ARMS = [(name, arm) for name, experiment in EXPERIMENTS.items() for arm in experiment.arms]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("experiment-closed-world")


@pytest.mark.parametrize(("name", "arm"), ARMS)
def test_every_arm_is_a_config_with_the_stages_that_it_runs(config: Config, name: str, arm: str):
    found = EXPERIMENTS[name].arms[arm]
    values = {**found.values, "benchmark.model": "nano", "mapping.rows": 8, "mapping.models": ["nano"]}
    changed = with_values(config, values)
    assert not found.needs or value_at(changed, found.needs) is None
    for key, value in found.values.items():
        assert value_at(changed, key) == value
    there = all_stages(changed)
    assert found.stages
    for _, stage in found.stages:
        assert stage in there


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_arms_differ_and_the_reference_is_one_of_them(name: str):
    experiment = EXPERIMENTS[name]
    assert experiment.reference in experiment.arms
    arms = experiment.arms.values()
    shown = [json.dumps(dict(arm.values)) + str((arm.stages, arm.train, arm.measured)) for arm in arms]
    assert len(set(shown)) == len(shown)


def test_shares_of_originals_are_as_the_arms_say():
    arms = EXPERIMENTS["budget"].arms
    ratios = {name: arm.values.get("select.original_ratio") for name, arm in arms.items()}
    assert ratios["distilled"] == 0.0 and ratios["originals"] == ratios["random"] == 1.0
    assert ratios["distilled 7 : originals 3"] == 0.3
    assert arms["untrained"] == Arm(stages=(("evaluate", "benchmark"),), measured="base")


def base_with(tmp_path, scores: list[int | None]) -> RunDir:
    base = RunDir(tmp_path)
    rows = [
        {"id": f"r{n}", "prompt": f"p{n}", "completion": f"c{n}", "curated_score": score}
        for n, score in enumerate(scores)
    ]
    table = schemas.table(rows, schemas.pa.schema(
        [("id", schemas.pa.string()), ("prompt", schemas.pa.string()), ("completion", schemas.pa.string()),
         ("curated_score", schemas.pa.int8())]
    ))  # fmt: skip
    base.stage("curate").write_part(0, table, None, Receipt(0, len(rows), len(rows), 0))
    return base


def test_the_whole_pool_is_every_row(tmp_path, config: Config):
    rows = list(whole_pool(base_with(tmp_path, [1, None, 5]), config, 0))
    assert rows[1] == {"id": "r1", "prompt": "p1", "completion": "c1"}
    assert len(rows) == 3


def test_sets_of_a_ratio_have_one_size_and_the_share_that_is_asked_for(tmp_path, config: Config):
    base = base_with(tmp_path, [1] * 30 + [4, 5] * 10 + [None] * 5)
    for name, arm in EXPERIMENTS["ratio"].arms.items():
        assert arm.train is not None
        ids = [int(row["id"][1:]) for row in arm.train(base, config, 3)]
        assert len(ids) == len(set(ids)) == 20
        assert sum(number < 30 for number in ids) == round(20 * float(name.partition("%")[0]) / 100)
        assert ids == [int(row["id"][1:]) for row in arm.train(base, config, 3)]
    other = EXPERIMENTS["ratio"].arms["50% low"].train
    assert [row["id"] for row in other(base, config, 4)] != [row["id"] for row in other(base, config, 3)]
