"""The statistics of the GRPO gain, and the configs that GRPO is run again with."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest

from lm_mixup.config.load import load_config

CONFIG = str(Path(__file__).parents[3] / "configs" / "quickstart.yaml")


@pytest.fixture
def grpo_gain(import_benchmark):
    return import_benchmark("grpo_gain")


def test_the_interval_is_students(grpo_gain):
    mean, half = grpo_gain.interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert math.isnan(grpo_gain.interval([0.1])[1])


def test_the_sign_of_every_quality_weight_is_turned_and_nothing_else(grpo_gain):
    plain = load_config(CONFIG).rewards
    turned = load_config(CONFIG, grpo_gain.flipped_weights(argparse.Namespace(config=CONFIG, set=[]))).rewards
    assert turned.weights.quality == -plain.weights.quality < 0
    assert turned.task_weights.keys() == plain.task_weights.keys()
    for task, weights in plain.task_weights.items():
        assert turned.task_weights[task] == weights.model_copy(update={"quality": -weights.quality})
    kept = {"weights", "task_weights"}
    assert turned.model_dump(exclude=kept) == plain.model_dump(exclude=kept)


def test_faithfulness_loses_its_weight_in_every_set_and_nothing_else_changes(grpo_gain):
    sets = 'rewards.task_weights={"mcq": {"quality": 1, "alignment": 0, "format": 0, "faithfulness": 2}}'
    plain = load_config(CONFIG, [sets]).rewards
    overrides = grpo_gain.without_faithfulness(argparse.Namespace(config=CONFIG, set=[sets]))
    without = load_config(CONFIG, [sets, *overrides]).rewards
    assert plain.weights.faithfulness > 0
    assert without.weights == plain.weights.model_copy(update={"faithfulness": 0.0})
    assert without.task_weights["mcq"].model_dump() == {
        "quality": 1, "alignment": 0, "format": 0, "faithfulness": 0
    }  # fmt: skip
