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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention.bias import causal_lower_right


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
