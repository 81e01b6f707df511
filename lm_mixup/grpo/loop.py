"""The GRPO loop (paper section 3.3): roll out, score, advantage, update, publish weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.grpo.advantages import group_advantages, zero_signal_groups
from lm_mixup.grpo.episodes import Episode
from lm_mixup.grpo.learner import Learner
from lm_mixup.grpo.metrics import UPDATE_KEYS, Clock, reward_metrics, rollout_tokens
from lm_mixup.grpo.rollout import Group, Prompt, RolloutPool
from lm_mixup.grpo.sampler import learning_rate, prompt_seeds, prompts_of_step
from lm_mixup.rewards.combine import COMPONENTS, weight_matrix
from lm_mixup.rewards.workers import RewardBatch, RewardScores, RewardWorkers


@dataclass
class Parts:
    """The live parts of a run."""

    rollout: RolloutPool
    rewards: RewardWorkers
    learner: Learner
    weights: RewardsConfig
    probe: list[int]


def train(
    parts: Parts,
    prompts: Sequence[Prompt],
    config: GrpoConfig,
    seed: int,
    done_steps: int,
    num_tokens: int,
    on_start: Callable[[int], None],
    on_step: Callable[[int, int, dict[str, Any]], None],
) -> None:
    """Runs GRPO from step `done_steps + 1` to `config.max_steps`.

    Every draw depends on (seed, step, prompt) alone, so a run that is resumed from a checkpoint goes on
    exactly as one that was never stopped.

    Args:
        parts: Rollout actors, reward actors, learner, and the probe that weight syncs are verified with.
        prompts: The GRPO split.
        config: The `grpo` section.
        seed: The run's seed.
        done_steps: Steps that the learner's weights have seen.
        num_tokens: Prompt and completion tokens so far.
        on_start: Called with `done_steps` once the engines hold the weights.
        on_step: Called with (step, num_tokens, metrics) after every step.
    """
    publish(parts, version=done_steps)
    on_start(done_steps)
    for step in range(done_steps + 1, config.max_steps + 1):
        clock = Clock()
        with clock.part("rollout"):
            batch = prompts_of_step(prompts, step, config.prompts_per_step, seed)
            groups = parts.rollout.generate(batch, prompt_seeds(batch, step, seed))
            parts.rollout.sleep()
        with clock.part("reward"):
            scores = parts.rewards.score(reward_batch(groups))
        with clock.part("advantage"):
            rewards = scores.total.reshape(len(groups), -1)
            advantages = advantages_of(groups, scores, rewards, parts.weights, config)
            # Under gdpo totals may tie where components differ: there the advantages tell.
            silent = zero_signal_groups(advantages if config.advantage == "gdpo" else rewards)
            episodes = make_episodes(groups, advantages, dropped=silent & config.drop_zero_std)
        with clock.part("update"):
            rate = learning_rate(step, config.learning_rate, config.warmup_steps)
            update = parts.learner.update(episodes, rate) if episodes else dict.fromkeys(UPDATE_KEYS)
        with clock.part("sync"):
            sync_difference = publish(parts, version=step)
        prompt_tokens, completion_tokens = rollout_tokens(groups)
        num_tokens += prompt_tokens + completion_tokens
        learned_tokens = sum(e.length for e in episodes)
        metrics = {
            "step": step,
            **reward_metrics(groups, scores, silent),
            **{key: update[key] for key in UPDATE_KEYS},
            "lr": rate,
            "weight_version": step,
            "staleness/mean": float(np.mean([step - 1 - g.weight_version for g in groups])),
            "sync/probe_logp_difference": sync_difference,
            **clock.timings(),
            "tokens_per_second/rollout": completion_tokens / clock.seconds["rollout"],
            "tokens_per_second/update": learned_tokens / clock.seconds["update"],
            "num_tokens": num_tokens,
        }
        on_step(step, num_tokens, metrics)


def publish(parts: Parts, version: int) -> float:
    """Sends the learner's weights to every engine; returns the largest |Δ log-prob| of the probe."""
    expected = parts.learner.logps(parts.probe)
    return parts.rollout.publish(version, parts.learner.weights(), parts.probe, expected)


def reward_batch(groups: Sequence[Group]) -> RewardBatch:
    """All completions of a step, flat, group after group."""
    flat = [(index, g.prompt, c) for index, g in enumerate(groups) for c in g.completions]
    return RewardBatch(
        task_types=[prompt.task_type for _, prompt, _ in flat],
        completions=[completion.text for _, _, completion in flat],
        references=[prompt.reference for _, prompt, _ in flat],
        groups=[index for index, _, _ in flat],
    )


def advantages_of(
    groups: Sequence[Group],
    scores: RewardScores,
    rewards: np.ndarray,
    weights: RewardsConfig,
    config: GrpoConfig,
) -> np.ndarray:
    """float64 [G, n] advantages; `gdpo` reads the reward components, the others the total."""
    if config.advantage != "gdpo":
        return group_advantages(rewards, config.advantage)
    components = np.stack([scores.components[name].reshape(rewards.shape) for name in COMPONENTS])
    by_group = weight_matrix([g.prompt.task_type for g in groups], weights)
    return group_advantages(rewards, "gdpo", components=components, weights=by_group)


def make_episodes(groups: Sequence[Group], advantages: np.ndarray, dropped: np.ndarray) -> list[Episode]:
    """One episode a completion, without the groups that carry no signal."""
    return [
        Episode(group.prompt.token_ids, completion.token_ids, completion.logprobs, float(advantage), index)
        for index, (group, row, drop) in enumerate(zip(groups, advantages, dropped, strict=True))
        if not drop
        for completion, advantage in zip(group.completions, row, strict=True)
    ]
