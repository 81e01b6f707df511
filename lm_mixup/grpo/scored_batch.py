"""The rollouts of one step with their rewards and advantages: from groups to what the learner is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.grpo.advantages import group_advantages, zero_signal_groups
from lm_mixup.grpo.types import Episode, Group
from lm_mixup.rewards.batch import RewardBatch, RewardScores
from lm_mixup.rewards.combine import component_names, weight_matrix

if TYPE_CHECKING:
    from lm_mixup.grpo.learner.learner import Learner


@dataclass(frozen=True)
class Batch:
    """Scored groups of n completions each.

    Attributes:
        groups: G groups.
        scores: N = G·n rewards, in the order of the groups.
        advantages: float64 [G, n].
        silent: bool [G], groups that carry no signal.
        kl: float64 [G, n], what `less_kl` took off the rewards, before its weight; else None.
    """

    groups: list[Group]
    scores: RewardScores
    advantages: NDArray[np.float64]
    silent: NDArray[np.bool_]
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
    )


def make_batch(
    groups: list[Group], scores: RewardScores, weights: RewardsConfig, config: GrpoConfig
) -> Batch:
    """Adds the advantages of scored groups and which groups carry no signal.

    `gdpo` reads the reward components, the other estimators the total. Under `gdpo` totals may tie where
    components differ: there the advantages tell the silent groups.

    Args:
        groups: G groups of n completions.
        scores: Their N = G·n rewards.
        weights: The `rewards` section: weights of the components by task type.
        config: The `grpo` section: the estimator.
    """
    rewards = scores.total.reshape(len(groups), -1)
    if config.advantage != "gdpo":
        return Batch(groups, scores, group_advantages(rewards, config.advantage), zero_signal_groups(rewards))
    names = component_names(weights)
    components = np.stack([scores.components[name].reshape(rewards.shape) for name in names])
    by_group = weight_matrix([g.prompt.task_type for g in groups], weights)
    advantages = group_advantages(rewards, "gdpo", components=components, weights=by_group)
    return Batch(groups, scores, advantages, zero_signal_groups(advantages))


def refilled(
    first: Batch, more: Sequence[Batch], count: int, weights: RewardsConfig, config: GrpoConfig
) -> Batch:
    """The groups with a signal, first draw before refills, at most `count` of them.

    Advantages are taken anew, because some estimators normalise over the batch: groups that are dropped must
    not count in it, whether others were found for them or not.

    Args:
        first: The step's own draw.
        more: What was drawn in place of its silent groups.
        count: Groups a step.
        weights: As for `make_batch`.
        config: As for `make_batch`.

    Returns:
        The batch to learn from; `first` itself where no group is dropped, or none speaks.
    """
    chosen = [(batch, int(g)) for batch in (first, *more) for g in np.flatnonzero(~batch.silent)][:count]
    if not chosen or not config.drop_zero_std or not first.silent.any():
        return first
    n = first.advantages.shape[1]

    rows = [(batch.scores, slice(g * n, (g + 1) * n)) for batch, g in chosen]
    total = np.concatenate([scores.total[row] for scores, row in rows])
    components = {
        name: np.concatenate([scores.components[name][row] for scores, row in rows])
        for name in component_names(weights)
    }
    return make_batch(
        [batch.groups[g] for batch, g in chosen], RewardScores(total, components), weights, config
    )


def less_kl(batch: Batch, learner: Learner, config: GrpoConfig) -> Batch:
    """With `kl_in: reward`: advantages of reward − β · KL, the KL of a completion summed over its tokens.

    Which groups carry a signal is left to their rewards alone, as with the KL in the loss.

    Args:
        batch: Groups with advantages of their rewards.
        learner: Holds the reference model.
        config: The `grpo` section.
    """
    if config.kl_in == "loss" or config.beta == 0:
        return batch
    kl = learner.kl(make_episodes(batch, drop_silent=False)).reshape(batch.advantages.shape)
    rewards = batch.scores.total.reshape(kl.shape) - config.beta * kl
    return dataclasses.replace(batch, advantages=group_advantages(rewards, config.advantage), kl=kl)


def make_episodes(batch: Batch, drop_silent: bool) -> list[Episode]:
    """One episode a completion; without the groups that carry no signal, if they are dropped."""
    return [
        Episode(group.prompt.token_ids, completion.token_ids, completion.logprobs, float(advantage), index)
        for index, (group, row, silent) in enumerate(
            zip(batch.groups, batch.advantages, batch.silent, strict=True)
        )
        if not (silent and drop_silent)
        for completion, advantage in zip(group.completions, row, strict=True)
    ]
