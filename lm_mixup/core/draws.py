"""Pseudo-random draws that depend only on a seed and on ids, and even shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from lm_mixup.core import schemas


def hash_of(seed: int, key: str) -> float:
    """A number in [0, 1) that depends only on the seed and the id."""
    return int(schemas.content_id(str(seed), key)[:13], 16) / 16**13


def split_of(
    name: str, seed: int, grpo_fraction: float, test_fraction: float, dev_fraction: float = 0.0
) -> str:
    """The split of an entity and of every row about it, by the hash of its name: sft, grpo, dev or test.

    Test and dev come first, so that their entities do not depend on `grpo_fraction`.
    """
    share = int(schemas.content_id("split", str(seed), name)[:8], 16) / 2**32
    if share < test_fraction:
        return "test"
    if share < test_fraction + dev_fraction:
        return "dev"
    return "grpo" if share < test_fraction + dev_fraction + grpo_fraction else "sft"


def index_in_group(groups: np.ndarray) -> np.ndarray:
    """The index of each row within its group, int64 [N]; `groups` is int64 [N] and ascending."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


Key = TypeVar("Key", bound=str | int)


def fair_shares(total: int, sizes: Mapping[Key, int]) -> dict[Key, int]:
    """Shares of a total, as even as the sizes allow: what exceeds one key's size goes to the others."""
    shares: dict[Key, int] = {}
    for taken, key in enumerate(sorted(sizes, key=lambda key: (sizes[key], key))):
        even = (total - sum(shares.values())) // (len(sizes) - taken)
        shares[key] = min(sizes[key], even)
    return shares
