"""Episodes (a prompt, one completion, its advantage) and how they are cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm_mixup.grpo.losses import GlobalCounts


@dataclass(frozen=True)
class Episode:
    """One completion, ready to learn from.

    Attributes:
        prompt_ids: Prompt tokens.
        completion_ids: Sampled tokens, at least one.
        engine_logps: float32 [T], log π_engine of the sampled tokens.
        advantage: Group-relative advantage.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    engine_logps: np.ndarray
    advantage: float

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class MicroBatch:
    """Padded tensors of one forward pass: prompts left-padded, completions right-padded.

    Attributes:
        input_ids: int64 [B, P + T].
        attention_mask: int64 [B, P + T].
        position_ids: int64 [B, P + T], starting at 0 with each prompt's first token.
        completion_ids: int64 [B, T].
        mask: float32 [B, T], 1 for completion tokens.
        engine_logp: float32 [B, T].
        advantages: float32 [B].
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    completion_ids: torch.Tensor
    mask: torch.Tensor
    engine_logp: torch.Tensor
    advantages: torch.Tensor


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
    """Pads episodes so that all completions start in the same column."""
    prompt_length = max(len(e.prompt_ids) for e in episodes)
    completion_length = max(len(e.completion_ids) for e in episodes)
    shape = (len(episodes), prompt_length + completion_length)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention = np.zeros(shape, dtype=np.int64)
    engine = np.zeros((len(episodes), completion_length), dtype=np.float32)
    for row, episode in enumerate(episodes):
        start, stop = prompt_length - len(episode.prompt_ids), prompt_length + len(episode.completion_ids)
        input_ids[row, start:stop] = [*episode.prompt_ids, *episode.completion_ids]
        attention[row, start:stop] = 1
        engine[row, : len(episode.completion_ids)] = episode.engine_logps
    positions = np.maximum(attention.cumsum(axis=1) - 1, 0)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention),
        position_ids=torch.from_numpy(positions),
        completion_ids=torch.from_numpy(input_ids[:, prompt_length:].copy()),
        mask=torch.from_numpy(attention[:, prompt_length:].astype(np.float32)),
        engine_logp=torch.from_numpy(engine),
        advantages=torch.tensor([e.advantage for e in episodes], dtype=torch.float32),
    )


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


def update_slices(count: int, update_batch_size: int | None) -> list[range]:
    """Which episodes each optimizer step of one rollout batch learns from, in order."""
    size = update_batch_size or count
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
