"""Which episodes go into which optimizer step, micro-batch and rank."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lm_mixup.grpo.losses import GlobalCounts
from lm_mixup.grpo.types import Episode

_SLACKS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)  # over an even share, because completions are not split


@dataclass(frozen=True)
class OptimizerStep:
    """One rank's share of one optimizer step.

    Attributes:
        micro_batches: Episode indices of each forward pass.
        counts: Of the step's episodes on all ranks, by which the loss is divided.
        learning_rate: Of this step.
    """

    micro_batches: list[list[int]]
    counts: GlobalCounts
    learning_rate: float


def micro_batches(lengths: Sequence[int], micro_tokens: int) -> list[list[int]]:
    """Splits episodes into micro-batches of at most `micro_tokens` tokens, padding included.

    Episodes are sorted by length, so those of similar length share a forward pass and padding stays small. An
    episode longer than `micro_tokens` gets its own micro-batch.

    Returns:
        Episode indices of each micro-batch; every episode is in exactly one.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        if not batches or longest * (len(batches[-1]) + 1) > micro_tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def shared_micro_batches(episodes: Sequence[Episode], micro_tokens: int, ranks: int = 1) -> list[list[int]]:
    """Splits episodes into packed micro-batches of at most `micro_tokens` tokens, prompts counted once.

    A group that does not fit is split into smaller ones, each with the prompt; so are groups if that keeps
    more ranks busy. An episode longer than `micro_tokens` gets its own micro-batch.

    Returns:
        Episode indices of each micro-batch, those of a group adjacent; the largest micro-batches first.
    """
    members: dict[int, list[int]] = {}
    for index, episode in enumerate(episodes):
        members.setdefault(episode.group, []).append(index)

    def tokens(batch: Sequence[int]) -> int:
        prompts = {episodes[i].group: len(episodes[i].prompt_ids) for i in batch}
        return sum(prompts.values()) + sum(len(episodes[i].completion_ids) for i in batch)

    def packed(limit: int) -> list[list[int]]:
        parts: list[list[int]] = []
        for group in members.values():
            prompt = len(episodes[group[0]].prompt_ids)
            sizes = [len(episodes[i].completion_ids) for i in group]
            parts += [[group[k] for k in part] for part in _first_fit(sizes, limit - prompt)]
        batches = [
            [i for part in chosen for i in parts[part]]
            for chosen in _first_fit([tokens(part) for part in parts], limit)
        ]
        return sorted(batches, key=tokens, reverse=True)

    def cost(batches: list[list[int]]) -> tuple[int, int]:
        """Tokens the ranks wait for (the largest micro-batch of each round), then all tokens."""
        sizes = [tokens(batch) for batch in batches]
        return sum(sizes[::ranks]), sum(sizes)

    share = sum(map(tokens, members.values())) / ranks
    even = share / max(1, -(-share // micro_tokens))
    limits = {min(micro_tokens, int(even * slack)) for slack in _SLACKS} if ranks > 1 else set()
    return min(map(packed, sorted(limits | {micro_tokens}, reverse=True)), key=cost)


def _first_fit(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Bins of indices whose sizes sum to at most `limit`, largest first; a larger item is alone."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = next((b for b, free in enumerate(room) if sizes[index] <= free), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(limit)
        bins[place].append(index)
        room[place] -= sizes[index]
    return bins


def assign_to_ranks(batches: Sequence[list[int]], ranks: int) -> list[list[list[int]]]:
    """Assigns micro-batches to ranks in turn, the same number to each.

    Under ZeRO-3 every forward pass is collective, so a rank with less work gets empty micro-batches, which it
    runs with zero loss.

    Returns:
        The micro-batches of each rank.
    """
    rounds = -(-len(batches) // ranks)
    assigned: list[list[list[int]]] = [[] for _ in range(ranks)]
    for turn in range(rounds):
        for rank in range(ranks):
            position = turn * ranks + rank
            assigned[rank].append(list(batches[position]) if position < len(batches) else [])
    return assigned


def update_slices(count: int, update_batch_size: int | None, group: int = 1) -> list[range]:
    """Which episodes each optimizer step of one rollout batch trains on, in order.

    The steps are of similar size: Adam would move the weights as far for a small remainder as for a full
    batch.

    Args:
        count: Number of episodes, at least one.
        update_batch_size: Most episodes per step; None: all of them.
        group: Completions per prompt; groups stay whole if `count` and `update_batch_size` are multiples of
            it, so that no prompt is computed in two steps.
    """
    size = update_batch_size or count
    unit = group if count % group == 0 and size % group == 0 else 1
    units = count // unit
    steps = -(-count // size)
    edges = [unit * -(-units * step // steps) for step in range(steps + 1)]
    return list(itertools.starmap(range, itertools.pairwise(edges)))
