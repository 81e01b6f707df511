"""The GRPO loop (paper section 3.3): roll out, score, advantage, update, publish weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.grpo.checkpoint import Progress
from lm_mixup.grpo.learner.learner import Learner
from lm_mixup.grpo.metrics import UPDATE_KEYS, Clock, rollout_metrics, rollout_tokens, update_metrics
from lm_mixup.grpo.rollout.pool import Pending, RolloutPool
from lm_mixup.grpo.sampler import learning_rate, prompt_seeds, prompts_of_step, refill_prompts
from lm_mixup.grpo.scored_batch import Batch, less_kl, make_batch, make_episodes, refilled, reward_batch
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.rewards.workers import RewardWorkers


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
    progress: Progress,
    on_start: Callable[[int], None],
    on_step: Callable[[Progress, dict[str, Any]], None],
) -> None:
    """Runs GRPO from the step after `progress.step` to `config.max_steps`.

    Every draw depends on (seed, step, prompt) alone, so a run that is resumed from a checkpoint goes on
    exactly as one that was never stopped. In `async` mode rollouts run ahead of the weights by at most
    `max_staleness` steps, also in a fixed order. Those that are unspent at the end of a step belong to its
    progress.

    Args:
        parts: Rollout actors, reward actors, learner, and the probe that weight syncs are verified with.
        prompts: The GRPO split.
        config: The `grpo` section.
        seed: The run's seed.
        progress: What was done before; the learner holds the weights of that.
        on_start: Called with the steps that were done before, once the engines hold the weights.
        on_step: Called with the progress and the metrics after every step.
    """
    publish(parts, version=progress.step)
    on_start(progress.step)
    num_tokens, unspent = progress.num_tokens, deque(progress.unspent)
    for step in range(progress.step + 1, config.max_steps + 1):
        clock = Clock()
        coming = steps_ahead(config, step, len(unspent))
        with clock.part("rollout"):
            own = None if unspent else start(parts, prompts, config, step, seed)
            # A refill would wait behind rollouts of coming steps: where one may come, they start after it.
            started = [start(parts, prompts, config, k, seed) for k in coming if not may_refill(config)]
            groups = parts.rollout.finish(own) if own else unspent.popleft()
        first = score(parts, groups, config, clock)
        more = refill(parts, prompts, first, config, step, seed, clock)
        started += [start(parts, prompts, config, k, seed) for k in coming if may_refill(config)]
        if not started:
            parts.rollout.sleep()
        with clock.part("advantage"):
            batch = refilled(first, more, config.prompts_per_step, parts.weights, config)
            batch = less_kl(batch, parts.learner, config)
            episodes = make_episodes(batch, config.drop_zero_std)
        with clock.part("update"):
            rate = learning_rate(step, config)
            update = parts.learner.update(episodes, rate) if episodes else dict.fromkeys(UPDATE_KEYS)
        with clock.part("sync"):
            sync_difference = publish(parts, version=step)
        with clock.part("rollout"):  # no wait: an engine takes weights once it has done what it was sent
            unspent.extend(parts.rollout.finish(pending) for pending in started)
        prompt_tokens, completion_tokens = rollout_tokens(first, *more)
        num_tokens += prompt_tokens + completion_tokens
        metrics = {
            "step": step,
            **rollout_metrics(first, more, step),
            **update_metrics(update, batch),
            "lr": rate,
            "weight_version": step,
            "sync/probe_logp_difference": sync_difference,
            **clock.metrics(rolled_out=completion_tokens, learned=sum(e.length for e in episodes)),
            "num_tokens": num_tokens,
        }
        on_step(Progress(step, num_tokens, tuple(unspent)), metrics)


def steps_ahead(config: GrpoConfig, step: int, unspent: int) -> range:
    """The coming steps whose rollouts are to start in this one: none but in `async` mode.

    Args:
        config: The `grpo` section.
        step: This step.
        unspent: Steps whose rollouts are there already, this one's first.
    """
    last = step + (config.max_staleness if config.mode == "async" else 0)
    return range(step + max(1, unspent), min(last, config.max_steps) + 1)


def start(parts: Parts, prompts: Sequence[Prompt], config: GrpoConfig, step: int, seed: int) -> Pending:
    """Starts the rollouts of a step."""
    drawn = prompts_of_step(prompts, step, config.prompts_per_step, seed)
    return parts.rollout.start(drawn, prompt_seeds(drawn, step, seed))


def may_refill(config: GrpoConfig) -> bool:
    """Whether other prompts may be drawn in place of silent groups."""
    return config.drop_zero_std and config.max_refills > 0


def score(parts: Parts, groups: list[Group], config: GrpoConfig, clock: Clock) -> Batch:
    """Rewards and advantages of drawn groups."""
    with clock.part("reward"):
        scores = parts.rewards.score(reward_batch(groups))
    with clock.part("advantage"):
        return make_batch(groups, scores, parts.weights, config)


def refill(
    parts: Parts,
    prompts: Sequence[Prompt],
    first: Batch,
    config: GrpoConfig,
    step: int,
    seed: int,
    clock: Clock,
) -> list[Batch]:
    """Draws other prompts in place of silent groups, up to `max_refills` times (DAPO, arXiv 2503.14476)."""
    more: list[Batch] = []
    missing = int(first.silent.sum())
    for draw in range(1, config.max_refills + 1):
        if not missing or not may_refill(config):
            break
        with clock.part("rollout"):
            drawn = refill_prompts(prompts, step, draw, missing, seed)
            groups = parts.rollout.generate(drawn, prompt_seeds(drawn, step, seed, draw))
        more.append(score(parts, groups, config, clock))
        missing = int(more[-1].silent.sum())
    return more


def publish(parts: Parts, version: int) -> float:
    """Sends the learner's weights to every engine; returns the largest |Δ log-prob| of the probe."""
    expected = parts.learner.logps(parts.probe)
    return parts.rollout.publish(version, parts.learner.weights(), parts.probe, expected)
