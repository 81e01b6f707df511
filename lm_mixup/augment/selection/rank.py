"""Rankings of candidates, and the quotas of sides and strata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from lm_mixup.config import SelectMethod
from lm_mixup.core.draws import hash_of, index_in_group


@dataclass(frozen=True)
class Quotas:
    """Rows that each side may give to the final set."""

    distilled: int
    original: int


def rank(
    candidates: pa.Table,
    method: SelectMethod,
    seed: int,
    take: Literal["low", "mid", "high"] = "mid",
    faithfulness_weight: float = 0.0,
) -> np.ndarray:
    """Orders candidates, best first.

    * `long_tail`, `knn_diversity`: farthest from its nearest neighbours first (they differ in whose
      neighbours, and in which rows are candidates). The second is the kNN baseline of DS2, arXiv 2410.10877.
    * `score`: highest first, of equal ones that with the highest rating before rounding (where there is none,
      last). `longest`: longest completion first ("Long is more for alignment", arXiv
      2402.04833). `random`: a seeded shuffle.
    * `alpagasus`: a seeded shuffle, since the method is a threshold that all candidates have passed (arXiv
      2307.08701).
    * `deita`: highest quality × complexity first, the evol score of arXiv 2312.15685; `deita.take_diverse`
      follows this order.
    * `ds2`: highest curated score first, and among equal scores the farthest from its neighbours (arXiv
      2410.10877).
    * `perplexity`: by `take`: lowest first, highest first ("top-ppl"), or nearest in rank to the median first
      ("mid-ppl", arXiv 2410.16208 and 2503.01807).
    * `less`: the largest influence on the target set first (arXiv 2402.04333).

    With a weight for faithfulness, rows go by (1 − weight) · place + weight · faithful, where the place in
    that order is scaled to 1 (first) … 0 (last), and equal ones by the place.

    Args:
        candidates: {id, and the columns the method reads: `long_tail`, `score` and `expected`, `length`,
            `overall`, `complexity`, `perplexity` or `influence`, and with a weight `faithful`}, without nulls
            in those but `expected`.
        seed: Of the shuffle that breaks all ties.
        take: Of `perplexity`.
        faithfulness_weight: In [0, 1].

    Returns:
        int64 [N]: row numbers. It depends on the rows as a set, not on their order.
    """
    shuffle = np.array([hash_of(seed, key) for key in candidates["id"].to_pylist()], dtype=np.float64)
    match method:
        case "random" | "alpagasus":
            merits = []
        case "long_tail" | "knn_diversity":
            merits = [_column(candidates, "long_tail")]
        case "score":
            merits = [_column(candidates, "score"), _column(candidates, "expected", missing=0.0)]
        case "longest":
            merits = [_column(candidates, "length")]
        case "deita":
            merits = [_column(candidates, "overall") * _column(candidates, "complexity")]
        case "ds2":
            merits = [_column(candidates, "score"), _column(candidates, "long_tail")]
        case "perplexity":
            merits = [_perplexity_merit(_column(candidates, "perplexity"), shuffle, take)]
        case "less":
            merits = [_column(candidates, "influence")]
    order = np.lexsort((shuffle, *(-merit for merit in reversed(merits))))
    if not faithfulness_weight or len(order) < 2:
        return order
    place = np.empty(len(order))
    place[order] = np.linspace(1.0, 0.0, len(order))
    faithful = _column(candidates, "faithful")
    return np.lexsort((-place, -((1 - faithfulness_weight) * place + faithfulness_weight * faithful)))


def _column(candidates: pa.Table, name: str, missing: float | None = None) -> np.ndarray:
    column = candidates[name] if missing is None else candidates[name].fill_null(missing)
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _perplexity_merit(perplexity: np.ndarray, shuffle: np.ndarray, take: str) -> np.ndarray:
    """The higher, the earlier a row is taken; float64 [N]."""
    if take != "mid":
        return perplexity if take == "high" else -perplexity
    place = np.empty(len(perplexity))
    place[np.lexsort((shuffle, perplexity))] = np.arange(len(perplexity))
    return -np.abs(2 * place - (len(perplexity) - 1))


def budget_rows(budget: int | str, pool_rows: int) -> int:
    """Rows of the final set: the number given, or that percentage of the pool, rounded, at least one."""
    if isinstance(budget, int):
        return budget
    return max(1, round(pool_rows * float(budget.rstrip("%")) / 100))


def quotas(budget: int, original_ratio: float) -> Quotas:
    """Splits a budget so that `original_ratio` of it are originals (half a row is rounded up)."""
    original = int(budget * original_ratio + 0.5)
    return Quotas(budget - original, original)


def strata_quotas(counts: np.ndarray, budget: int) -> np.ndarray:
    """Splits a budget in proportion to the strata's candidates, by largest remainders (Hamilton's method).

    Args:
        counts: int64 [S], candidates of each stratum.

    Returns:
        int64 [S]: they add up to the budget, unless there are no candidates at all. None exceeds the
        candidates of its stratum while the budget does not exceed them all. Equal remainders: the larger
        stratum first, then the earlier.
    """
    counts = np.asarray(counts, dtype=np.int64)
    total = int(counts.sum())
    if not total:
        return np.zeros_like(counts)
    shares, remainders = np.divmod(counts * budget, total)
    order = np.lexsort((np.arange(len(counts)), -counts, -remainders))
    shares[order[: budget - int(shares.sum())]] += 1
    return shares


def fill(order: np.ndarray, strata: np.ndarray, room: np.ndarray) -> np.ndarray:
    """The rows of an order for which their stratum has room when their turn comes.

    Args:
        order: int64 [N], row numbers, best first.
        strata: int64 [N], the stratum of each row number.
        room: int64 [S], rows that each stratum may give.

    Returns:
        int64 [T]: row numbers, ascending.
    """
    grouped = order[np.argsort(strata[order], kind="stable")]
    groups = strata[grouped]
    return np.sort(grouped[index_in_group(groups) < room[groups]])
