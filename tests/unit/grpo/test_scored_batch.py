"""Batches: advantages of scored groups, refills, episodes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.grpo.loop import refill_zero_std
from lm_mixup.grpo.metrics import UPDATE_KEYS, Clock, rollout_metrics, update_metrics
from lm_mixup.grpo.sampler import refill_prompts
from lm_mixup.grpo.scored_batch import (
    ScoredBatch,
    apply_kl_penalty,
    join_refills,
    make_batch,
    make_episodes,
    reward_batch,
)
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.models.engine import Completion
from lm_mixup.rewards.workers import RewardScores

CONFIG = GrpoConfig(num_generations=2, prompts_per_step=2)
WEIGHTS = RewardsConfig()


def group(name: str, n: int = 2) -> Group:
    completions = [Completion([7, i], np.zeros(2, dtype=np.float32), f"{name}{i}", True) for i in range(n)]
    prompt = Prompt(name, "qa", [1, 2, 3], f"reference {name}", inputs=(f"poor {name}",))
    return Group(prompt, completions, weight_version=0)


def scored(rewards: dict[str, list[float]], config: GrpoConfig = CONFIG) -> ScoredBatch:
    total = np.array([value for values in rewards.values() for value in values])
    scores = RewardScores(
        total, {"quality": total, "alignment": 0 * total, "format": 0 * total, "faithfulness": 0 * total}
    )
    return make_batch([group(name) for name in rewards], scores, WEIGHTS, config)


def test_completions_are_flat_and_group_after_group():
    batch = reward_batch([group("a"), group("b")])
    assert batch.completions == ["a0", "a1", "b0", "b1"]
    assert batch.groups == [0, 0, 1, 1]
    assert batch.references == ["reference a"] * 2 + ["reference b"] * 2
    assert batch.inputs == [("poor a",)] * 2 + [("poor b",)] * 2


def test_zero_std_groups_are_refilled_and_the_first_draw_comes_first():
    first = scored({"a": [0.5, 0.5], "b": [0, 1]})
    refills = [scored({"c": [1, 0], "d": [0, 1]})]
    batch = join_refills(first, refills, 2, WEIGHTS, CONFIG)
    assert [g.prompt.id for g in batch.groups] == ["b", "c"]
    assert batch.scores.total.tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(np.sign(batch.advantages), [[-1, 1], [1, -1]])
    assert [e.advantage > 0 for e in make_episodes(batch, drop_zero_std=True)] == [False, True, True, False]


def test_without_a_refill_the_batch_is_the_first_draw_and_zero_std_groups_are_dropped():
    first = scored({"a": [0.5, 0.5], "b": [0, 1]})
    assert [g.prompt.id for g in join_refills(first, [], 2, WEIGHTS, CONFIG).groups] == ["b"]
    keep = CONFIG.model_copy(update={"drop_zero_std": False})
    assert join_refills(first, [], 2, WEIGHTS, keep) is first
    assert len(make_episodes(first, drop_zero_std=True)) == 2
    assert len(make_episodes(first, drop_zero_std=False)) == 4
    zero_std = scored({"a": [0.5, 0.5]})
    assert make_episodes(join_refills(zero_std, [zero_std], 1, WEIGHTS, CONFIG), drop_zero_std=True) == []


def test_groups_that_are_dropped_do_not_scale_the_others():
    """REINFORCE++ divides by the batch's standard deviation, where a zero-std group counts as zeros."""
    config = CONFIG.model_copy(update={"advantage": "reinforce_plus_plus"})
    alone = scored({"b": [0, 1], "c": [1, 0]}, config)
    beside = scored({"a": [0.5, 0.5], "b": [0, 1], "c": [1, 0], "d": [0, 0]}, config)
    refill = [scored({"e": [1, 1]}, config)]
    for refills in ([], refill):
        batch = join_refills(beside, refills, 4, WEIGHTS, config)
        np.testing.assert_allclose(batch.advantages, alone.advantages)


def test_the_kl_penalty_does_not_decide_which_groups_are_zero_std():
    episodes = []

    class Learner:
        def kl(self, asked) -> np.ndarray:
            episodes.extend(asked)
            return np.array([1.0, 2.0, 6.0, 2.0])

    batch = scored({"a": [0.5, 0.5], "b": [0, 1]})
    assert apply_kl_penalty(batch, Learner(), CONFIG) is batch and not episodes
    config = CONFIG.model_copy(update={"kl_in": "reward", "beta": 0.25, "advantage": "dr_grpo"})
    charged = apply_kl_penalty(batch, Learner(), config)
    assert [e.completion_ids for e in episodes] == [[7, 0], [7, 1]] * 2
    np.testing.assert_allclose(charged.advantages, [[0.125, -0.125], [-1.0, 1.0]])
    assert charged.zero_std.tolist() == [True, False]
    assert charged.scores is batch.scores
    update = dict.fromkeys(UPDATE_KEYS, 0.5)
    assert update_metrics(update, charged) == update | {"kl": 11 / 8}
    assert update_metrics(update, batch) == update


def test_totals_that_tie_are_not_zero_std_under_gdpo_if_their_parts_differ():
    components = {
        "quality": np.array([1.0, 0.0]),
        "alignment": np.array([0.0, 1.0]),
        "format": np.zeros(2),
        "faithfulness": np.zeros(2),
    }
    scores = RewardScores(np.array([0.5, 0.5]), components)
    assert make_batch([group("a")], scores, WEIGHTS, CONFIG).zero_std.tolist() == [True]
    gdpo = make_batch([group("a")], scores, WEIGHTS, CONFIG.model_copy(update={"advantage": "gdpo"}))
    assert gdpo.zero_std.tolist() == [False]
    assert gdpo.advantages[0, 0] > 0 > gdpo.advantages[0, 1]  # quality weighs 0.5, alignment 0.4


def test_a_custom_component_reaches_gdpo_refills_and_the_log():
    own = RewardsConfig.model_validate({"custom": {"mine": {"path": "m:f", "weight": 1.0}}})
    config = CONFIG.model_copy(update={"advantage": "gdpo"})

    def batch(name: str, mine: list[float]) -> ScoredBatch:
        zeros = np.zeros(2)
        none = dict.fromkeys(("quality", "alignment", "format", "faithfulness"), zeros)
        return make_batch(
            [group(name)], RewardScores(np.array(mine), none | {"mine": np.array(mine)}), own, config
        )

    first, refills = batch("a", [4.0, 4.0]), batch("b", [1.0, 3.0])
    assert first.zero_std.tolist() == [True] and refills.zero_std.tolist() == [False]
    joined = join_refills(first, [refills], 1, own, config)
    assert joined.scores.components["mine"].tolist() == [1.0, 3.0]
    assert joined.advantages[0, 1] > 0 > joined.advantages[0, 0]
    assert rollout_metrics(first, [refills], step=1)["rewards/mine/mean"] == 4.0
    without = own.model_copy(
        update={"custom": {"mine": own.custom["mine"].model_copy(update={"weight": 0.0})}}
    )
    assert make_batch(refills.groups, refills.scores, without, config).zero_std.tolist() == [True]


class Rollouts:
    """Draws any group; remembers for which prompts."""

    def __init__(self) -> None:
        self.drawn: list[list[str]] = []

    def generate(self, prompts, seeds):
        assert len(seeds) == len(prompts)
        self.drawn.append([prompt.id for prompt in prompts])
        return [group(prompt.id) for prompt in prompts]


class Scores:
    """Equal rewards in the first draws, different ones after."""

    def __init__(self, zero_std_draws: int) -> None:
        self.left = zero_std_draws

    def score(self, batch):
        self.left -= 1
        total = np.arange(len(batch.completions), dtype=np.float64) * (self.left < 0)
        return RewardScores(
            total, {"quality": total, "alignment": 0 * total, "format": 0 * total, "faithfulness": 0 * total}
        )


@pytest.mark.parametrize(
    ("zero_std_draws", "max_refills", "draws"), [(9, 0, 0), (9, 2, 2), (0, 2, 1), (1, 3, 2)]
)
def test_refills_end_when_enough_groups_differ_or_at_the_cap(zero_std_draws, max_refills, draws):
    prompts = [Prompt(str(i), "qa", [1], "r") for i in range(8)]
    first = scored({"a": [0.5, 0.5], "b": [0, 1]})
    rollouts = Rollouts()
    actors = SimpleNamespace(rollout=rollouts, rewards=Scores(zero_std_draws), reward_config=WEIGHTS)
    config = CONFIG.model_copy(update={"max_refills": max_refills})
    refills = refill_zero_std(actors, prompts, first, config, 3, 0, Clock())
    assert len(refills) == len(rollouts.drawn) == draws
    assert all(len(drawn) == 1 for drawn in rollouts.drawn)
    metrics = rollout_metrics(first, refills, step=3)
    assert metrics["refilled_groups"] == (1 if draws and zero_std_draws < draws else 0)
    assert metrics["reward"] == 0.5 and metrics["frac_reward_zero_std"] == 0.5
    assert metrics["reward_std"] == pytest.approx((0.5 / 3) ** 0.5)  # of .5, .5, 0 and 1, over all of them
    assert metrics["staleness/mean"] == metrics["staleness/max"] == 2


def test_refills_are_other_draws_the_same_ones_each_time():
    drawn = refill_prompts(range(50), 3, 1, 5, seed=0)
    assert drawn == refill_prompts(range(50), 3, 1, 5, seed=0) and len(set(drawn)) == 5
    assert drawn != refill_prompts(range(50), 3, 2, 5, seed=0) != refill_prompts(range(50), 4, 2, 5, seed=0)
    assert sorted(refill_prompts(range(3), 1, 1, 9, seed=0)) == [0, 1, 2]


def test_what_is_logged_is_the_weighted_sum_under_any_composition():
    total = np.array([-0.5, 0.5])
    weighted = np.array([0.2, 0.6])
    scores = RewardScores(total, dict.fromkeys(WEIGHTS.weights.model_dump(), weighted), weighted)
    batch = make_batch([group("a")], scores, WEIGHTS, CONFIG)
    assert rollout_metrics(batch, [], 1)["reward"] == pytest.approx(0.4)
    assert RewardScores(total).reported is total
