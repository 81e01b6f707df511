"""Which prompts a step draws, with which seeds and learning rate."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_mixup.config import GrpoConfig
from lm_mixup.grpo.sampler import learning_rate, prompt_seeds, prompts_of_step


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
