"""Means with intervals over seeds, and paired differences between two arms.

A score is measured on the same questions under every seed: float64 [S, Q], S seeds and Q questions; measures
that have no questions are [S, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

_LEVEL = 0.95
_DRAWS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval; no interval where there is nothing to tell the spread from."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference(Estimate):
    """Of two arms, with a two-sided p-value."""

    p: float | None = None


def mean_over_seeds(scores: np.ndarray) -> Estimate:
    """The mean, with Student's interval over the seeds' means; of one seed, no interval.

    It says how far another seed may be from these, not another set of questions.

    Args:
        scores: float64 [S, Q].
    """
    means = scores.mean(axis=1)
    if len(means) < 2:
        return Estimate(float(means.mean()))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))
    return Estimate(float(means.mean()), float(means.mean()) - half, float(means.mean()) + half)


def paired_difference(arm: np.ndarray, reference: np.ndarray, seed: int = 0) -> Difference:
    """Arm less reference, by a bootstrap of the pairs over seeds and over questions.

    Seed i of the one is paired with seed i of the other, and so are questions. Each of 10,000 draws takes S
    seeds and Q questions with replacement. p is twice the share of draws on the far side of 0, at least
    2 / 10,001. With few seeds the bootstrap knows little of their spread: of three, intervals are too
    narrow. Of a single pair of numbers there is only the difference.

    Args:
        arm: float64 [S, Q].
        reference: float64 [S, Q].
        seed: Of the draws.

    Raises:
        ValueError: The two have different shapes.
    """
    if arm.shape != reference.shape:
        raise ValueError(f"{arm.shape} and {reference.shape} are not pairs")
    gaps = arm - reference
    if gaps.size < 2:
        return Difference(float(gaps.mean()))
    rng = np.random.default_rng(seed)
    seeds, count = gaps.shape
    means = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        chosen = gaps[rng.integers(seeds, size=seeds)]
        means[draw] = chosen[:, rng.integers(count, size=count)].mean()
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Difference(
        float(gaps.mean()), float(low), float(high), min(1.0, float(2 * (beyond + 1) / (_DRAWS + 1)))
    )
