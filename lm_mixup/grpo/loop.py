"""The GRPO loop (LM-mixup, arXiv 2510.20449, section 3.3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.grpo.checkpoint import Progress
from lm_mixup.grpo.learner.learner import Learner
from lm_mixup.grpo.metrics import Clock, rollout_tokens, step_metrics
from lm_mixup.grpo.rollout.pool import PendingRollout, RolloutPool
from lm_mixup.grpo.sampler import (
    learning_rate,
    prompt_seeds,
    prompts_of_step,
    refill_prompts,
    refills_allowed,
    steps_ahead,
)
from lm_mixup.grpo.scored_batch import (
    ScoredBatch,
    apply_kl_penalty,
    join_refills,
    make_batch,
    make_episodes,
    reward_batch,
)
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.rewards.workers import RewardWorkers


@dataclass
class Actors:
    """The live actors of a run.

    Attributes:
        rollout: vLLM engines.
        rewards: Reward actors.
        learner: DeepSpeed ranks.
        reward_config: The `rewards` section.
        probe: Token ids that every weight sync is verified with.
    """

    rollout: RolloutPool
    rewards: RewardWorkers
    learner: Learner
    reward_config: RewardsConfig
    probe: list[int]


def train(
    actors: Actors,
    prompts: Sequence[Prompt],
    config: GrpoConfig,
    seed: int,
    progress: Progress,
    on_start: Callable[[int], None],
    on_step: Callable[[Progress, dict[str, Any]], None],
) -> None:
    """Runs GRPO from the step after `progress.step` to `config.max_steps`.

    Every draw depends on (seed, step, prompt) alone, so a run resumed from a checkpoint continues exactly as
    one that was never stopped. In `async` mode rollouts run ahead of the weights by at most `max_staleness`
    steps, in a fixed order; those not trained on yet are buffered, and are part of the progress.

    Args:
        actors: Rollout, reward and learner actors; the learner holds the weights of `progress`.
        prompts: The GRPO split.
        config: The `grpo` section.
        seed: The run's seed.
        progress: What has been done before.
        on_start: Called once with the steps done before, after the first weight sync.
        on_step: Called after every step with the progress and the metrics.
    """
    publish_weights(actors, version=progress.step)
    on_start(progress.step)
    num_tokens, buffered = progress.num_tokens, deque(progress.buffered)
    for step in range(progress.step + 1, config.max_steps + 1):
        clock = Clock()
        ahead = steps_ahead(config, step, len(buffered))
        with clock.part("rollout"):
            current = None if buffered else start_rollout(actors, prompts, config, step, seed)
            # A refill would queue behind rollouts of later steps: if one is possible, those start after it.
            started = [] if refills_allowed(config) else start_ahead(actors, prompts, config, ahead, seed)
            groups = actors.rollout.finish(current) if current else buffered.popleft()
        first = score(actors, groups, config, clock)
        refills = refill_zero_std(actors, prompts, first, config, step, seed, clock)
        if refills_allowed(config):
            started = start_ahead(actors, prompts, config, ahead, seed)
        if not started:
            actors.rollout.sleep()
        with clock.part("advantage"):
            batch = join_refills(first, refills, config.prompts_per_step, actors.reward_config, config)
            batch = apply_kl_penalty(batch, actors.learner, config)
            episodes = make_episodes(batch, config.drop_zero_std)
        with clock.part("update"):
            rate = learning_rate(step, config)
            update = actors.learner.update(episodes, rate) if episodes else None
        with clock.part("sync"):
            probe_difference = publish_weights(actors, version=step)
        with clock.part("rollout"):  # no wait here: an engine loads weights after the prompts it was sent
            buffered.extend(actors.rollout.finish(pending) for pending in started)
        num_tokens += sum(rollout_tokens(first, *refills))
        metrics = step_metrics(step, first, refills, batch, update, episodes, clock) | {
            "lr": rate,
            "weight_version": step,
            "sync/probe_logp_difference": probe_difference,
            "num_tokens": num_tokens,
        }
        on_step(Progress(step, num_tokens, tuple(buffered)), metrics)


def start_rollout(
    actors: Actors, prompts: Sequence[Prompt], config: GrpoConfig, step: int, seed: int
) -> PendingRollout:
    """Starts the rollouts of a step and returns at once."""
    drawn = prompts_of_step(prompts, step, config.prompts_per_step, seed)
    return actors.rollout.start(drawn, prompt_seeds(drawn, step, seed))


def start_ahead(
    actors: Actors, prompts: Sequence[Prompt], config: GrpoConfig, steps: Sequence[int], seed: int
) -> list[PendingRollout]:
    """Starts the rollouts of later steps."""
    return [start_rollout(actors, prompts, config, step, seed) for step in steps]


def score(actors: Actors, groups: list[Group], config: GrpoConfig, clock: Clock) -> ScoredBatch:
    """Rewards and advantages of groups."""
    with clock.part("reward"):
        scores = actors.rewards.score(reward_batch(groups))
    with clock.part("advantage"):
        return make_batch(groups, scores, actors.reward_config, config)


def refill_zero_std(
    actors: Actors,
    prompts: Sequence[Prompt],
    first: ScoredBatch,
    config: GrpoConfig,
    step: int,
    seed: int,
    clock: Clock,
) -> list[ScoredBatch]:
    """Draws other prompts in place of zero-std groups, up to `max_refills` times (DAPO, arXiv 2503.14476)."""
    refills: list[ScoredBatch] = []
    missing = int(first.zero_std.sum()) if refills_allowed(config) else 0
    while missing and len(refills) < config.max_refills:
        draw = len(refills) + 1
        with clock.part("rollout"):
            drawn = refill_prompts(prompts, step, draw, missing, seed)
            groups = actors.rollout.generate(drawn, prompt_seeds(drawn, step, seed, draw))
        refills.append(score(actors, groups, config, clock))
        missing = int(refills[-1].zero_std.sum())
    return refills


def publish_weights(actors: Actors, version: int) -> float:
    """Sends the learner's weights to every engine; returns the largest mean |Δ log-prob| of the probe."""
    expected = actors.learner.logps(actors.probe)
    return actors.rollout.publish(version, actors.learner.weights(), actors.probe, expected)
