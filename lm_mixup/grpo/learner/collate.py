"""Shared prompts: a group's prompt stands once in a row, followed by the group's completions.

A row holds one group after another, without padding:

    prompt a | completion a1 | a2 | a3 | prompt b | completion b1 | b2

A completion sees its prompt and itself, never a sibling, and its positions go on from the prompt's last one,
so every token has the hidden state it would have in a sequence of its own. The first token of a completion is
predicted at its prompt's last column. A forward pass computes P + nR tokens a group in place of n(P + R).

The block mask is never built. Attention (`forward.py`) falls into two dense parts a group: the prompt over
itself, causal; and the completions, as a batch, over prompt and self, where the mask is one triangle that all
of them share. That leaves out what a mask of the whole row would compute only to discard, needs memory
linear in the row, and is the same code on CPU and GPU.
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
        columns: int64 [n · R] where the completions' tokens stand, counted from the prompt's end; padded to R
            each with a column of its own.
        tokens: int64 [Σ lengths] which of these n · R are tokens and not padding.
        mask: Which of P + R keys each of R queries sees, see `completion_mask`.
    """

    prompt_length: int
    lengths: tuple[int, ...]
    columns: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor

    @property
    def longest(self) -> int:
        """R, tokens of the longest completion."""
        return max(self.lengths)

    def to(self, device: torch.device) -> PackedGroup:
        """The same on a device."""
        return dataclasses.replace(
            self,
            columns=self.columns.to(device),
            tokens=self.tokens.to(device),
            mask=completion_mask(self.prompt_length, self.longest, device),
        )


@dataclass(frozen=True)
class PackedRow:
    """Groups in one row of L tokens, N of them in completions.

    Attributes:
        input_ids: int64 [1, L].
        position_ids: int64 [1, L]; every completion goes on from its prompt's last position.
        completion_ids: int64 [1, N], completion after completion.
        logit_columns: int64 [N], the column that predicts each completion token.
        groups: The groups, in the order in which they stand.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    completion_ids: torch.Tensor
    logit_columns: torch.Tensor
    groups: tuple[PackedGroup, ...]


def pack(groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> PackedRow:
    """Packs (prompt, completions) groups into one row.

    Args:
        groups: Token ids; at least one token a prompt and a completion, one completion a group.
    """
    tokens: list[int] = []
    positions: list[np.ndarray] = []
    completion_ids: list[int] = []
    logit_columns: list[np.ndarray] = []
    packed: list[PackedGroup] = []
    for prompt, completions in groups:
        end = len(tokens) + len(prompt)
        lengths = tuple(len(completion) for completion in completions)
        packed.append(_packed_group(len(prompt), lengths))
        tokens.extend(prompt)
        positions.append(np.arange(len(prompt)))
        for completion in completions:
            first = len(tokens)
            tokens.extend(completion)
            completion_ids.extend(completion)
            positions.append(np.arange(len(prompt), len(prompt) + len(completion)))
            logit_columns.append(np.array([end - 1, *range(first, len(tokens) - 1)]))
    return PackedRow(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.from_numpy(np.concatenate(positions)[None]),
        completion_ids=torch.tensor([completion_ids]),
        logit_columns=torch.from_numpy(np.concatenate(logit_columns)),
        groups=tuple(packed),
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
    """Token t of a completion sees the prompt and the completion's tokens up to itself.

    Padding at a completion's end is to the right of all its tokens, so that one mask fits every completion.

    Returns:
        [R, P + R], true where seen. On CUDA a causal bias that the flash kernels take in place of a mask.
    """
    if device.type == "cuda":
        bias: torch.Tensor = causal_lower_right(completion_length, prompt_length + completion_length)
        return bias
    seen = torch.ones(completion_length, prompt_length + completion_length, dtype=torch.bool, device=device)
    return seen.tril(prompt_length)


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
