"""What the build stages made of the closed world, once for all tests."""

from __future__ import annotations

import pytest
from small_build import build

from lm_mixup.chat.judge import make_judge
from lm_mixup.config import DataConfig, RateConfig
from lm_mixup.core.run_dir import RunDir
from lm_mixup.mixture.assemble import mixture_part
from lm_mixup.mixture.offline_writer import write_samples, write_variants
from lm_mixup.mixture.passages import passages


@pytest.fixture(scope="session")
def listed(tmp_path_factory):
    out = RunDir(tmp_path_factory.mktemp("run")).stage("passages")
    passages(out, build(), DataConfig(), seed=0)
    return out.read().to_pylist()


@pytest.fixture(scope="session")
def generated(listed):
    return write_samples(
        listed, range(len(listed)), 0, make_judge(RateConfig(relevance=False)), build(), seed=0
    )


@pytest.fixture(scope="session")
def degraded(generated):
    return write_variants(generated.rows, make_judge(RateConfig(relevance=False)), build(), seed=0)


@pytest.fixture(scope="session")
def mixed(generated, degraded):
    config = build(crosstopic_rate=0.2, noise_rate=0.5)
    return mixture_part(generated.rows, degraded.rows, config, seed=0)
