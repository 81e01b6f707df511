"""Which prompts a step draws, checkpoints, metrics, and the check of the weight sync."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.core.errors import InputError
from lm_mixup.grpo import checkpoint
from lm_mixup.grpo.checkpoint import Progress
from lm_mixup.grpo.placement import plan_bundles
from lm_mixup.grpo.sampler import learning_rate, prompt_seeds, prompts_of_step
from lm_mixup.grpo.weights.verify import (
    Digests,
    EngineState,
    Published,
    WeightSyncError,
    check_digests,
    check_probe,
    model_digest,
)
from lm_mixup.train.tracking import append_metrics, read_metrics, trim_metrics


@given(st.integers(1, 40), st.integers(1, 15), st.integers(0, 3))
def test_no_prompt_is_skipped_or_repeated_within_an_epoch(total: int, count: int, seed: int):
    steps = -(-3 * total // count)
    drawn = [p for step in range(1, steps + 1) for p in prompts_of_step(range(total), step, count, seed)]
    for epoch in range(3):
        assert sorted(drawn[epoch * total : (epoch + 1) * total]) == list(range(total))


def test_a_resumed_run_draws_what_an_undisturbed_one_draws():
    assert prompts_of_step(range(10), 7, 3, 0) == prompts_of_step(range(10), 7, 3, 0)
    assert prompts_of_step(range(10), 7, 3, 0) != prompts_of_step(range(10), 7, 3, 1)


def test_seeds_differ_between_steps_prompts_and_places():
    prompts = [SimpleNamespace(id="a"), SimpleNamespace(id="a"), SimpleNamespace(id="b")]
    seeds = prompt_seeds(prompts, 1, 0) + prompt_seeds(prompts, 2, 0) + prompt_seeds(prompts, 1, 1)
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def rates(**changes) -> list[float]:
    config = GrpoConfig(learning_rate=1.0, **changes)
    return [learning_rate(step, config) for step in range(1, config.max_steps + 1)]


def test_the_learning_rate_warms_up_and_decays():
    assert rates(max_steps=5, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(max_steps=3) == [1.0, 1.0, 1.0]
    assert rates(max_steps=4, lr_scheduler="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(max_steps=4, warmup_steps=2, lr_scheduler="linear") == [0.5, 1.0, 1.0, 0.5]
    assert rates(max_steps=2, warmup_steps=2, lr_scheduler="linear") == [0.5, 1.0]
    assert rates(max_steps=4, lr_scheduler="cosine") == pytest.approx(
        [1.0, 0.853553, 0.5, 0.146447], abs=1e-6
    )


class FakeLearner:
    """Stands in for the learner's own files only: the bookkeeping around them is what is tested."""

    def __init__(self) -> None:
        self.loaded: str | None = None

    def save(self, folder: Path, tag: str) -> None:
        (folder / tag).mkdir(parents=True)

    def load(self, folder: Path, tag: str) -> None:
        self.loaded = tag


def test_a_checkpoint_without_its_last_file_is_not_one(tmp_path: Path):
    learner = FakeLearner()
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, learner, Progress(step, 10 * step), limit=2)
    (tmp_path / "step-000009").mkdir()
    assert checkpoint.load_latest(tmp_path, learner) == Progress(3, 30)
    assert learner.loaded == "step-000003"
    assert not (tmp_path / "step-000001").exists()


def test_without_a_checkpoint_the_run_starts_at_the_start(tmp_path: Path):
    assert checkpoint.load_latest(tmp_path, FakeLearner()) == Progress(0, 0)


def test_metrics_after_the_resumed_step_are_dropped_and_a_cut_line_is_ignored(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "rew')
    assert trim_metrics(path, 2) == [{"step": 1}, {"step": 2}]
    append_metrics(path, {"step": 3, "reward": 0.5})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "reward": 0.5}]


@pytest.mark.parametrize("bad", [0.01, float("nan"), float("inf")])
def test_engines_with_other_weights_stop_the_run(bad: float):
    published = Published(7, None, [1, 2, 3], np.zeros(2, dtype=np.float32))
    assert check_probe(0, published, held([0.0, 1e-4]), None) == pytest.approx(5e-5)
    with pytest.raises(WeightSyncError, match="weights 7"):
        check_probe(0, published, held([0.0, bad]), None)


def test_bfloat16_may_differ_by_its_rounding_unless_the_config_is_stricter():
    published = Published(7, None, [1, 2, 3], np.zeros(2, dtype=np.float32))
    rounded = held([-0.5, 0.02], "bfloat16")
    with pytest.raises(WeightSyncError, match="2e-01 in bfloat16"):
        check_probe(0, published, rounded, None)
    assert check_probe(0, published, held([-0.3, 0.02], "bfloat16"), None) == pytest.approx(0.16)
    with pytest.raises(WeightSyncError):
        check_probe(0, published, held([-0.3, 0.02], "bfloat16"), 0.1)


def test_weights_that_are_not_finite_are_not_a_sync_error():
    published = Published(7, None, [1, 2], np.array([np.nan], dtype=np.float32))
    with pytest.raises(RuntimeError, match=r"weights 7 are not finite.*learning_rate"):
        check_probe(0, published, held([0.0]), None)


def test_weights_that_never_arrived_stop_the_run_however_little_they_differ():
    def check(version: int, sent: str, digests: str, before: Digests | None, whole: bool = True) -> Digests:
        return check_digests(version, sent, [held([0.0], digest=d, whole=whole) for d in digests], before)

    first = check(0, "a", "xx", None)
    assert check(1, "a", "xx", first) == first  # an update that changed nothing
    second = check(1, "b", "yy", first)
    for sent, digests, what in (
        ("c", "yy", "the same weights as before"),
        ("b", "zz", "other weights than before, although the same were sent"),
        ("c", "zy", "different weights"),
    ):
        with pytest.raises(WeightSyncError, match=what):
            check(2, sent, digests, second)
    check(2, "c", "yy", second, whole=False)  # what changed may be what cannot be seen


def test_a_digest_sees_the_smallest_step_of_one_weight():
    import torch

    layer = torch.nn.Linear(300, 200).to(torch.bfloat16)
    before = model_digest(layer)
    assert model_digest(layer) == before
    assert before[1]
    layer.bias.data = torch.empty(0)
    assert not model_digest(layer)[1]
    before = model_digest(layer)
    with torch.no_grad():
        weight = layer.weight[7, 11]
        weight.copy_(torch.nextafter(weight, weight + 1))
    assert model_digest(layer) != before


def held(logps: list[float], dtype: str = "float32", digest: str = "x", whole: bool = True) -> EngineState:
    return EngineState(np.array(logps, dtype=np.float32), digest, whole, dtype)


def test_bundles():
    rewards = RewardsConfig(num_actors=2, num_cpus=0.1)
    cpu = GrpoConfig(learner_ranks=2, rollout_actors=3, cpus_per_actor=0.5, prompts_per_step=4)
    bundles, first = plan_bundles(cpu, rewards, on_gpu=False)
    assert bundles == [{"CPU": 0.5}] * 3 + [{"CPU": 0.1}] * 2
    assert first == 0
    apart = cpu.model_copy(update={"mode": "disaggregated", "tensor_parallel_size": 2})
    bundles, first = plan_bundles(apart, rewards, on_gpu=False)
    assert bundles == [{"CPU": 0.5}] * 5 + [{"CPU": 0.1}] * 2
    assert first == 2
    bundles, first = plan_bundles(apart, rewards, on_gpu=True)
    assert [bundle.get("GPU", 0) for bundle in bundles] == [1, 1, 2, 2, 2, 0, 0]
    shared, first = plan_bundles(cpu, rewards, on_gpu=True)
    assert [bundle.get("GPU", 0) for bundle in shared] == [1, 1, 1, 0, 0]
    assert first == 0
    with pytest.raises(InputError, match="tensor_parallel_size"):
        plan_bundles(cpu.model_copy(update={"tensor_parallel_size": 2}), rewards, on_gpu=True)
