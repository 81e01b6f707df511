"""Draws that depend on a seed and on ids alone, and fair shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from lm_mixup.core import schemas


def hash_of(seed: int, key: str) -> float:
    """A number in [0, 1) that a seed and an id decide."""
    return int(schemas.content_id(str(seed), key)[:13], 16) / 16**13


def turns(groups: np.ndarray) -> np.ndarray:
    """The turn of each row within its group, from 0 on, int64 [N]; `groups` int64 [N], ascending."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


Key = TypeVar("Key", bound=str | int)


def fair_shares(total: int, sizes: Mapping[Key, int]) -> dict[Key, int]:
    """Shares out a total evenly; who has less than an even share gives all, and the others get the rest."""
    shares: dict[Key, int] = {}
    for taken, key in enumerate(sorted(sizes, key=lambda key: (sizes[key], key))):
        even = (total - sum(shares.values())) // (len(sizes) - taken)
        shares[key] = min(sizes[key], even)
    return shares
