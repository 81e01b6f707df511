"""Episodes (a prompt, one completion, its advantage) and how they are cut into micro-batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm_mixup.grpo.losses import GlobalCounts
from lm_mixup.grpo.packing import PackedGroup, pack

_SLACKS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)  # over an even share: room that whole completions need


@dataclass(frozen=True)
class Episode:
    """One completion, ready to learn from.

    Attributes:
        prompt_ids: Prompt tokens.
        completion_ids: Sampled tokens, at least one.
        engine_logps: float32 [T], log π_engine of the sampled tokens.
        advantage: Group-relative advantage.
        group: Which group of the rollout batch it belongs to; episodes of one group have one prompt.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    engine_logps: np.ndarray
    advantage: float
    group: int

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward pass over B episodes, whose completions have up to T tokens.

    Plain, an episode is a row (A = B, prompts left-padded, completions right-padded, N = T). With shared
    prompts all episodes are one row (A = 1) of N completion tokens, without padding (`packing.py`).

    Attributes:
        input_ids: int64 [A, L].
        attention_mask: int64 [A, L]; where the row is packed, an empty [1, 1, 0, 0] that nothing reads.
        position_ids: int64 [A, L], starting at 0 with each prompt's first token.
        completion_ids: int64 [A, N], the tokens whose log-probs are wanted.
        logit_columns: int64 [N], the columns that predict them.
        mask: float32 [B, T], 1 for completion tokens.
        engine_logp: float32 [B, T].
        advantages: float32 [B].
        slots: int64 [N], where each token stands in a flat [B, T]; packed rows only.
        groups: Where each group stands; packed rows only.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    completion_ids: torch.Tensor
    logit_columns: torch.Tensor
    mask: torch.Tensor
    engine_logp: torch.Tensor
    advantages: torch.Tensor
    slots: torch.Tensor | None = None
    groups: tuple[PackedGroup, ...] | None = None

    def by_completion(self, values: torch.Tensor) -> torch.Tensor:
        """[A, N] values of completion tokens as [B, T], a completion a row; padding is 0 in packed rows."""
        if self.slots is None:
            return values
        flat = values.new_zeros(self.mask.numel()).index_copy(0, self.slots, values.flatten())
        return flat.view_as(self.mask)

    def weightless(self) -> MicroBatch:
        """The same forward pass, whose loss and gradient are 0."""
        return dataclasses.replace(self, mask=self.mask * 0)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {name: v.to(device) for name, v in fields.items() if isinstance(v, torch.Tensor)}
        groups = None if self.groups is None else tuple(group.to(device) for group in self.groups)
        return dataclasses.replace(self, **moved, groups=groups)


@dataclass(frozen=True)
class OptimizerStep:
    """One rank's share of one optimizer step.

    Attributes:
        micro_batches: Episode indices of each forward pass.
        counts: Figures of the whole group's batch, which the loss is divided by.
        learning_rate: Of this step.
    """

    micro_batches: list[list[int]]
    counts: GlobalCounts
    learning_rate: float


def collate(episodes: Sequence[Episode], pad_id: int) -> MicroBatch:
    """Pads episodes to a row each, so that all completions start in the same column."""
    prompt_length = max(len(e.prompt_ids) for e in episodes)
    completion_length = max(len(e.completion_ids) for e in episodes)
    shape = (len(episodes), prompt_length + completion_length)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention = np.zeros(shape, dtype=np.int64)
    for row, episode in enumerate(episodes):
        start, stop = prompt_length - len(episode.prompt_ids), prompt_length + len(episode.completion_ids)
        input_ids[row, start:stop] = [*episode.prompt_ids, *episode.completion_ids]
        attention[row, start:stop] = 1
    positions = np.maximum(attention.cumsum(axis=1) - 1, 0)
    mask, engine_logp, advantages = _loss_tensors(episodes)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention),
        position_ids=torch.from_numpy(positions),
        completion_ids=torch.from_numpy(input_ids[:, prompt_length:].copy()),
        logit_columns=torch.arange(prompt_length - 1, shape[1] - 1),
        mask=mask,
        engine_logp=engine_logp,
        advantages=advantages,
    )


def collate_shared(episodes: Sequence[Episode]) -> MicroBatch:
    """Packs episodes into one row, with one prompt for neighbours of the same group.

    Raises:
        ValueError: Episodes of one group differ in their prompts.
    """
    groups = [list(members) for _, members in itertools.groupby(episodes, key=lambda e: e.group)]
    for members in groups:
        if any(e.prompt_ids != members[0].prompt_ids for e in members):
            raise ValueError(f"episodes of group {members[0].group} have different prompts")
    row = pack([(members[0].prompt_ids, [e.completion_ids for e in members]) for members in groups])
    mask, engine_logp, advantages = _loss_tensors(episodes)
    return MicroBatch(
        input_ids=row.input_ids,
        attention_mask=torch.ones(1, 1, 0, 0, dtype=torch.bool),
        position_ids=row.position_ids,
        completion_ids=row.completion_ids,
        logit_columns=row.logit_columns,
        mask=mask,
        engine_logp=engine_logp,
        advantages=advantages,
        slots=mask.flatten().nonzero().squeeze(1),
        groups=row.groups,
    )


def _loss_tensors(episodes: Sequence[Episode]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the loss reads of B episodes: mask [B, T], engine log-probs [B, T], advantages [B]."""
    lengths = np.array([len(e.completion_ids) for e in episodes])
    mask = np.arange(lengths.max()) < lengths[:, None]
    engine = np.zeros(mask.shape, dtype=np.float32)
    engine[mask] = np.concatenate([e.engine_logps for e in episodes])
    advantages = torch.tensor([e.advantage for e in episodes], dtype=torch.float32)
    return torch.from_numpy(mask.astype(np.float32)), torch.from_numpy(engine), advantages


def micro_batches(lengths: Sequence[int], micro_tokens: int) -> list[list[int]]:
    """Cuts episodes into micro-batches of at most `micro_tokens` tokens, padding counted.

    Episodes are taken by length, so those of like length share a forward pass and padding stays small. An
    episode longer than `micro_tokens` gets a micro-batch of its own.

    Args:
        lengths: Tokens of each episode.
        micro_tokens: Most tokens of one forward pass.

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
    """Cuts episodes into packed micro-batches of up to `micro_tokens` tokens, a group's prompt counted once.

    A group that does not fit is cut into smaller ones, each with the prompt; so are groups where that keeps
    more ranks at work. An episode longer than `micro_tokens` gets a micro-batch of its own.

    Returns:
        Episode indices of each micro-batch, those of a group side by side; the largest micro-batches first.
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
        """Tokens that the ranks wait for, the largest micro-batch of each round; then tokens in all."""
        sizes = [tokens(batch) for batch in batches]
        return sum(sizes[::ranks]), sum(sizes)

    share = sum(map(tokens, members.values())) / ranks
    even = share / max(1, -(-share // micro_tokens))
    limits = {min(micro_tokens, int(even * slack)) for slack in _SLACKS} if ranks > 1 else set()
    return min(map(packed, sorted(limits | {micro_tokens}, reverse=True)), key=cost)


def _first_fit(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Bins of indices whose sizes add up to `limit` at most, largest first; what is larger is alone."""
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


def spread(batches: Sequence[list[int]], ranks: int) -> list[list[list[int]]]:
    """Deals micro-batches to ranks, the same number to each.

    ZeRO-3 gathers parameters in every forward pass on all ranks together, so a rank with less to do gets
    empty micro-batches; it runs them with zero weight.

    Returns:
        For each rank its micro-batches.
    """
    rounds = -(-len(batches) // ranks)
    dealt: list[list[list[int]]] = [[] for _ in range(ranks)]
    for turn in range(rounds):
        for rank in range(ranks):
            position = turn * ranks + rank
            dealt[rank].append(list(batches[position]) if position < len(batches) else [])
    return dealt


def update_slices(count: int, update_batch_size: int | None, group: int = 1) -> list[range]:
    """Which episodes each optimizer step of one rollout batch learns from, in order.

    The steps are of like size: Adam moves weights as far for the few completions that would be left over as
    for a full batch.

    Args:
        count: Episodes, at least one.
        update_batch_size: Most episodes of a step; None: all of them.
        group: Completions of a prompt; groups stay whole where `count` and `update_batch_size` are made of
            them, so that no prompt is computed in two steps.
    """
    size = update_batch_size or count
    unit = group if count % group == 0 and size % group == 0 else 1
    units = count // unit
    steps = -(-count // size)
    edges = [unit * -(-units * step // steps) for step in range(steps + 1)]
    return list(itertools.starmap(range, itertools.pairwise(edges)))
