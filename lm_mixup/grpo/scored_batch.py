"""The rollouts of one step with rewards and advantages: from groups to the episodes the learner trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.grpo.advantages import group_advantages, zero_std_groups
from lm_mixup.grpo.types import Episode, Group
from lm_mixup.rewards.batch import RewardBatch, RewardScores
from lm_mixup.rewards.combine import component_names, weight_matrix

if TYPE_CHECKING:
    from lm_mixup.grpo.learner.learner import Learner


@dataclass(frozen=True)
class ScoredBatch:
    """Scored groups of n completions each.

    Attributes:
        groups: G groups.
        scores: N = G·n rewards, in the order of the groups.
        advantages: float64 [G, n].
        zero_std: bool [G], groups whose rewards do not differ.
        kl: float64 [G, n], the KL subtracted by `apply_kl_penalty`, before its weight; else None.
    """

    groups: list[Group]
    scores: RewardScores
    advantages: NDArray[np.float64]
    zero_std: NDArray[np.bool_]
    kl: NDArray[np.float64] | None = None


def reward_batch(groups: Sequence[Group]) -> RewardBatch:
    """All completions of a step, flat, group after group."""
    flat = [(index, g.prompt, c) for index, g in enumerate(groups) for c in g.completions]
    return RewardBatch(
        task_types=[prompt.task_type for _, prompt, _ in flat],
        completions=[completion.text for _, _, completion in flat],
        references=[prompt.reference for _, prompt, _ in flat],
        groups=[index for index, _, _ in flat],
        inputs=[prompt.inputs for _, prompt, _ in flat],
        finished=[completion.finished for _, _, completion in flat],
    )


def make_batch(
    groups: list[Group], scores: RewardScores, rewards: RewardsConfig, config: GrpoConfig
) -> ScoredBatch:
    """Computes the advantages of scored groups and marks the zero-std ones.

    `gdpo` reads the reward components, the other estimators the total. Under `gdpo` totals may tie while
    components differ, so there the advantages decide which groups are zero-std.

    Args:
        groups: G groups of n completions.
        scores: Their N = G·n rewards.
        rewards: The `rewards` section: weights of the components by task type.
        config: The `grpo` section: the estimator.
    """
    total = scores.total.reshape(len(groups), -1)
    if config.advantage != "gdpo":
        return ScoredBatch(groups, scores, group_advantages(total, config.advantage), zero_std_groups(total))
    components = np.stack([scores.components[name].reshape(total.shape) for name in component_names(rewards)])
    weights = weight_matrix([g.prompt.task_type for g in groups], rewards)
    advantages = group_advantages(total, "gdpo", components=components, weights=weights)
    return ScoredBatch(groups, scores, advantages, zero_std_groups(advantages))


def join_refills(
    first: ScoredBatch,
    refills: Sequence[ScoredBatch],
    count: int,
    rewards: RewardsConfig,
    config: GrpoConfig,
) -> ScoredBatch:
    """The groups with differing rewards, first draw before refills, at most `count` of them.

    Advantages are recomputed, because some estimators normalize over the batch: dropped groups must not count
    there, whether or not others were found in their place.

    Returns:
        The batch to train on; `first` itself if no group is dropped or all of them would be.
    """
    chosen = [(batch, int(g)) for batch in (first, *refills) for g in np.flatnonzero(~batch.zero_std)][:count]
    if not chosen or not config.drop_zero_std or not first.zero_std.any():
        return first
    n = first.advantages.shape[1]
    rows = [(batch.scores, slice(g * n, (g + 1) * n)) for batch, g in chosen]
    total = np.concatenate([scores.total[row] for scores, row in rows])
    weighted = np.concatenate([scores.reported[row] for scores, row in rows])
    components = {
        name: np.concatenate([scores.components[name][row] for scores, row in rows])
        for name in component_names(rewards)
    }
    groups = [batch.groups[g] for batch, g in chosen]
    return make_batch(groups, RewardScores(total, components, weighted), rewards, config)


def apply_kl_penalty(batch: ScoredBatch, learner: Learner, config: GrpoConfig) -> ScoredBatch:
    """With `kl_in: reward`: advantages of reward − β · KL, the KL of a completion summed over its tokens.

    Which groups are zero-std is still decided by their rewards alone, as with the KL in the loss.

    Args:
        batch: Groups with advantages of their rewards.
        learner: Holds the reference model.
        config: The `grpo` section.
    """
    if config.kl_in == "loss" or config.beta == 0:
        return batch
    kl = learner.kl(make_episodes(batch, drop_zero_std=False)).reshape(batch.advantages.shape)
    rewards = batch.scores.total.reshape(kl.shape) - config.beta * kl
    return dataclasses.replace(batch, advantages=group_advantages(rewards, config.advantage), kl=kl)


def make_episodes(batch: ScoredBatch, drop_zero_std: bool) -> list[Episode]:
    """One episode per completion, with or without those of zero-std groups."""
    return [
        Episode(group.prompt.token_ids, completion.token_ids, completion.logprobs, float(advantage), index)
        for index, (group, row, zero_std) in enumerate(
            zip(batch.groups, batch.advantages, batch.zero_std, strict=True)
        )
        if not (zero_std and drop_zero_std)
        for completion, advantage in zip(group.completions, row, strict=True)
    ]
