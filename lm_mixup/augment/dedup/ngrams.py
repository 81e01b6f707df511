"""Texts as sets of hashed word n-grams, for near-duplicates and decontamination."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_BASE: Final = np.uint64(0x9E3779B97F4A7C15)


def ngram_hashes(items: list[str], n: int) -> Hashes:
    """The hashes of the n-grams of a list of words, in order: [max(0, len(items) - n + 1)] uint64."""
    count = max(0, len(items) - n + 1)
    single = np.fromiter((_hash(item) for item in items), np.uint64, len(items))
    rolled = np.full(count, n, np.uint64)
    for offset in range(n if count else 0):
        rolled = rolled * _BASE + single[offset : offset + count]
    return mix(rolled)


@lru_cache(maxsize=1 << 18)
def _hash(item: str) -> int:
    """The same on every machine and in every process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(item.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def mix(values: Hashes) -> Hashes:
    """Spreads the bits of 64-bit numbers (the finaliser of splitmix64): one to one."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
