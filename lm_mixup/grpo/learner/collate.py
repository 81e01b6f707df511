"""Micro-batches of episodes: padded, one row per episode, or packed, with shared prompts.

A packed row holds one group after another, without padding, each prompt followed by its completions:

    prompt a | completion a1 | a2 | a3 | prompt b | completion b1 | b2

A completion attends to its prompt and itself, never to a sibling, and its positions continue from the
prompt's last one, so every token has the hidden state it would have in its own sequence. The first token of
a completion is predicted at its prompt's last column. A forward pass computes P + nR tokens per group instead
of n(P + R).

The block mask is never built. Attention (`forward.py`) splits into two dense parts per group: the prompt
over itself, causal; and the completions, as a batch, over prompt and self, with one triangular mask for all
of them. This skips what a mask of the whole row would compute only to discard, needs memory linear in the
row, and is the same code on CPU and GPU.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention.bias import causal_lower_right

from lm_mixup.grpo.types import Episode


@dataclass(frozen=True)
class PackedGroup:
    """One prompt and its completions in a packed row. P prompt tokens, n completions of at most R tokens.

    Attributes:
        prompt_length: P.
        lengths: Tokens of each completion.
        columns: int64 [n · R], columns of the completions' tokens, counted from the prompt's end; a shorter
            completion is padded with its own last column.
        tokens: int64 [Σ lengths], which of these n · R are tokens and not padding.
        mask: Which of P + R keys each of R queries attends to, see `completion_mask`.
    """

    prompt_length: int
    lengths: tuple[int, ...]
    columns: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor

    @property
    def longest(self) -> int:
        """R, the tokens of the longest completion."""
        return max(self.lengths)

    def to(self, device: torch.device) -> PackedGroup:
        """The same on a device."""
        return dataclasses.replace(
            self,
            columns=self.columns.to(device),
            tokens=self.tokens.to(device),
            mask=completion_mask(self.prompt_length, self.longest, device),
        )


def _packed_group(prompt_length: int, lengths: tuple[int, ...]) -> PackedGroup:
    size = np.array(lengths)[:, None]
    first = np.cumsum(size, axis=0) - size
    place = np.arange(max(lengths))[None]
    return PackedGroup(
        prompt_length=prompt_length,
        lengths=lengths,
        columns=torch.from_numpy((first + np.minimum(place, size - 1)).reshape(-1)),
        tokens=torch.from_numpy(np.flatnonzero(place < size)),
        mask=completion_mask(prompt_length, max(lengths), torch.device("cpu")),
    )


def completion_mask(prompt_length: int, completion_length: int, device: torch.device) -> torch.Tensor:
    """Token t of a completion attends to the prompt and to the completion's tokens up to itself.

    Completions are padded on the right, so one mask fits all of them.

    Returns:
        bool [R, P + R]. On CUDA a causal bias, which the flash kernels accept instead of a mask.
    """
    if device.type == "cuda":
        bias: torch.Tensor = causal_lower_right(completion_length, prompt_length + completion_length)
        return bias
    seen = torch.ones(completion_length, prompt_length + completion_length, dtype=torch.bool, device=device)
    return seen.tril(prompt_length)


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward pass over B episodes, whose completions have up to T tokens.

    Padded, each episode is a row (A = B, prompts left-padded, completions right-padded, N = T). With shared
    prompts all episodes are packed into one row (A = 1) with N completion tokens.

    Attributes:
        input_ids: int64 [A, L].
        attention_mask: int64 [A, L]; in packed rows an empty [1, 1, 0, 0] that nothing reads.
        position_ids: int64 [A, L], starting at 0 with each prompt's first token.
        completion_ids: int64 [A, N], the tokens whose log-probs are computed.
        logit_columns: int64 [N], the columns that predict them.
        mask: float32 [B, T], 1 for completion tokens.
        engine_logp: float32 [B, T].
        advantages: float32 [B].
        token_index: int64 [N], index of each token in a flat [B, T]; packed rows only.
        groups: Position of each group; packed rows only.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    completion_ids: torch.Tensor
    logit_columns: torch.Tensor
    mask: torch.Tensor
    engine_logp: torch.Tensor
    advantages: torch.Tensor
    token_index: torch.Tensor | None = None
    groups: tuple[PackedGroup, ...] | None = None

    def by_completion(self, values: torch.Tensor) -> torch.Tensor:
        """[A, N] values of completion tokens as [B, T], one completion per row; packed rows pad with 0."""
        if self.token_index is None:
            return values
        flat = values.new_zeros(self.mask.numel()).index_copy(0, self.token_index, values.flatten())
        return flat.view_as(self.mask)

    def zero_loss(self) -> MicroBatch:
        """The same forward pass with loss and gradient 0."""
        return dataclasses.replace(self, mask=self.mask * 0)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {name: v.to(device) for name, v in fields.items() if isinstance(v, torch.Tensor)}
        groups = None if self.groups is None else tuple(group.to(device) for group in self.groups)
        return dataclasses.replace(self, **moved, groups=groups)


def collate(episodes: Sequence[Episode], pad_id: int) -> MicroBatch:
    """Pads episodes to one row each, so that all completions start in the same column."""
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
    """Packs episodes into one row, with one prompt for adjacent episodes of a group.

    Raises:
        ValueError: Episodes of one group differ in their prompts.
    """
    tokens: list[int] = []
    positions: list[np.ndarray] = []
    completion_ids: list[int] = []
    logit_columns: list[np.ndarray] = []
    packed: list[PackedGroup] = []
    for group, adjacent in itertools.groupby(episodes, key=lambda e: e.group):
        members = list(adjacent)
        prompt = members[0].prompt_ids
        if any(e.prompt_ids != prompt for e in members):
            raise ValueError(f"episodes of group {group} have different prompts")
        tokens.extend(prompt)
        positions.append(np.arange(len(prompt)))
        prompt_end = len(tokens)
        for episode in members:
            first, length = len(tokens), len(episode.completion_ids)
            tokens.extend(episode.completion_ids)
            completion_ids.extend(episode.completion_ids)
            positions.append(np.arange(len(prompt), len(prompt) + length))
            logit_columns.append(np.array([prompt_end - 1, *range(first, first + length - 1)]))
        packed.append(_packed_group(len(prompt), tuple(len(e.completion_ids) for e in members)))
    mask, engine_logp, advantages = _loss_tensors(episodes)
    return MicroBatch(
        input_ids=torch.tensor([tokens]),
        attention_mask=torch.ones(1, 1, 0, 0, dtype=torch.bool),
        position_ids=torch.from_numpy(np.concatenate(positions)[None]),
        completion_ids=torch.tensor([completion_ids]),
        logit_columns=torch.from_numpy(np.concatenate(logit_columns)),
        mask=mask,
        engine_logp=engine_logp,
        advantages=advantages,
        token_index=mask.flatten().nonzero().squeeze(1),
        groups=tuple(packed),
    )


def _loss_tensors(episodes: Sequence[Episode]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss inputs of B episodes: mask [B, T], engine log-probs [B, T], advantages [B]."""
    lengths = np.array([len(e.completion_ids) for e in episodes])
    mask = np.arange(lengths.max()) < lengths[:, None]
    engine = np.zeros(mask.shape, dtype=np.float32)
    engine[mask] = np.concatenate([e.engine_logps for e in episodes])
    advantages = torch.tensor([e.advantage for e in episodes], dtype=torch.float32)
    return torch.from_numpy(mask.astype(np.float32)), torch.from_numpy(engine), advantages
