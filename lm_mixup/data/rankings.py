"""How the final set is chosen: rankings of candidates, and how many rows each side may give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from lm_mixup import records

Method = Literal["long_tail", "score", "random", "longest"]


@dataclass(frozen=True)
class Quotas:
    """Rows that each side may give to the final set."""

    distilled: int
    original: int


def rank(candidates: pa.Table, method: Method, seed: int) -> np.ndarray:
    """Orders candidates, best first.

    Args:
        candidates: {id, and the columns the method reads: `long_tail`, `score` and `expected`, or `length`}.
        method: `long_tail`: farthest from its neighbours first; `score`: highest first, of equal ones that
            with the highest rating before rounding (a missing one comes last); `longest`: longest completion
            first; `random`: a seeded shuffle.
        seed: Of the shuffle that `random` is and that breaks all ties.

    Returns:
        int64 [N]: row numbers. It depends on the rows as a set, not on their order.
    """
    shuffle = np.array([hash_of(seed, key) for key in candidates["id"].to_pylist()], dtype=np.float64)
    match method:
        case "random":
            return np.argsort(shuffle, kind="stable")
        case "long_tail":
            merits = [candidates["long_tail"]]
        case "score":
            merits = [candidates["expected"].fill_null(0), candidates["score"]]
        case "longest":
            merits = [candidates["length"]]
    return np.lexsort((shuffle, *(-merit.to_numpy().astype(np.float64) for merit in merits)))


def hash_of(seed: int, key: str) -> float:
    """A number in [0, 1) that a seed and an id decide."""
    return int(records.content_id(str(seed), key)[:13], 16) / 16**13


def budget_rows(budget: int | str, pool_rows: int) -> int:
    """Rows of the final set: the number given, or that percentage of the pool, rounded, at least one."""
    if isinstance(budget, int):
        return budget
    return max(1, round(pool_rows * float(budget.rstrip("%")) / 100))


def quotas(budget: int, original_ratio: float) -> Quotas:
    """Splits a budget so that `original_ratio` of it are originals (half a row is rounded up)."""
    original = int(budget * original_ratio + 0.5)
    return Quotas(budget - original, original)
