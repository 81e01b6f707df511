"""Alarms: each is raised by what it is about, once, and by nothing else."""

from __future__ import annotations

import pytest

from lm_mixup.grpo.metrics import WINDOW, alarm_history, new_alarms, steps_without_update

HEALTHY = {
    "entropy": 1.0,
    "completions/duplicate_ratio": 0.1,
    "completions/mean_length": 100.0,
    "completions/clipped_ratio": 0.05,
    "rewards/alignment/mean": 0.5,
    "rewards/quality/mean": 0.4,
    "frac_reward_zero_std": 0.2,
    "sampling/logp_difference/mean": 1e-4,
}
TROUBLE = {
    "mode_collapse": {"entropy": 0.05, "completions/duplicate_ratio": 0.7},
    "semantic_drift": {"rewards/alignment/mean": 0.3, "rewards/quality/mean": 0.7},
    "length_blow_up": {"completions/mean_length": 190.0, "completions/clipped_ratio": 0.5},
    "logp_mismatch": {"sampling/logp_difference/mean": 0.3},
    "no_signal": {"frac_reward_zero_std": 0.95},
}


def run_of(*phases: tuple[int, dict]) -> list[dict]:
    return [HEALTHY | change for steps, change in phases for _ in range(steps)]


def steps_raised(lines: list[dict], name: str, synchronous: bool = True) -> list[int]:
    return [n for n in range(1, len(lines) + 1) if name in new_alarms(lines[:n], synchronous)]


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_is_said_once_and_again_when_it_comes_back(name: str):
    lines = run_of((10, {}), (12, TROUBLE[name]), (12, {}), (12, TROUBLE[name]))
    assert len(steps_raised(lines, name)) == 2
    for other in TROUBLE.keys() - {name}:
        assert not steps_raised(lines, other)


@pytest.mark.parametrize("name", TROUBLE)
def test_a_healthy_run_and_a_single_bad_step_raise_nothing(name: str):
    assert not steps_raised(run_of((30, {})), name)
    if name != "no_signal":  # its limit is four fifths of one step's range
        assert not steps_raised(run_of((10, {}), (1, {"completions/mean_length": 190.0}), (10, {})), name)


@pytest.mark.parametrize("name", ["mode_collapse", "semantic_drift", "length_blow_up"])
def test_a_change_is_not_said_before_there_is_something_to_compare(name: str):
    lines = run_of((1, {}), (2 * WINDOW - 2, TROUBLE[name]))
    assert steps_raised(lines, name) == []


@pytest.mark.parametrize("name", ["no_signal", "logp_mismatch"])
def test_what_needs_no_comparison_is_said_in_a_short_run(name: str):
    assert steps_raised(run_of((7, TROUBLE[name])), name) == [WINDOW]
    lines = [line | {"step": number} for number, line in enumerate(run_of((7, TROUBLE[name])), start=1)]
    assert [step for step, _ in alarm_history(lines, synchronous=True)] == [WINDOW]


def test_steps_without_an_update_are_counted():
    assert steps_without_update([{"loss": None}, {"loss": 0.0}, {}]) == 2


def test_stale_rollouts_may_differ_from_the_learner():
    lines = run_of((10, {}), (12, TROUBLE["logp_mismatch"]))
    assert steps_raised(lines, "logp_mismatch", synchronous=False) == []


def test_steps_without_an_update_do_not_count():
    lines = run_of((10, {}), (12, {"entropy": None}))
    assert new_alarms(lines, synchronous=True) == {}


def test_history_tells_every_alarm_and_where_it_began():
    lines = run_of((10, {}), (12, TROUBLE["no_signal"]), (12, {}), (12, TROUBLE["mode_collapse"]))
    lines = [line | {"step": number} for number, line in enumerate(lines, start=1)]
    told = alarm_history(lines, synchronous=True)
    assert [step for step, _ in told] == [
        *steps_raised(lines, "no_signal"),
        *steps_raised(lines, "mode_collapse"),
    ]
    assert "equal rewards" in told[0][1] and "entropy fell" in told[1][1]


def test_metrics_that_were_not_logged_raise_nothing():
    assert new_alarms([{"reward": 0.5}] * 12, synchronous=True) == {}
