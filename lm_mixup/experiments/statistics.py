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
_CELLS = 2**20  # of scores that are drawn at once: 8 MB


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
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(means) - 1) * _standard_error(means))
    return Estimate(float(means.mean()), float(means.mean()) - half, float(means.mean()) + half)


def paired_difference(arm: np.ndarray, reference: np.ndarray, seed: int = 0) -> Difference:
    """Arm less reference, where seed i of the one is paired with seed i of the other, and so are questions.

    Of measures with questions, a bootstrap over seeds and over questions: each of 10,000 draws takes S seeds
    and Q questions with replacement, and p is twice the share of draws on the far side of 0, at least
    2 / 10,001. Where questions differ more than seeds, it is right from two seeds on; where seeds differ as
    much, its intervals are too narrow with so few.

    Of measures with one value a seed, Student's paired t test: all that S numbers of one sign could tell a
    bootstrap is that it never draws the other.

    Of one seed there is only the difference: it cannot tell an arm from the luck of a seed.

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
    seeds, questions = gaps.shape
    if seeds < 2:
        return Difference(float(gaps.mean()))
    if questions == 1:
        return _students_difference(gaps[:, 0])
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS // gaps.size)
    means = np.concatenate(
        [_resampled(gaps, min(at_once, _DRAWS - done), rng) for done in range(0, _DRAWS, at_once)]
    )
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Difference(
        float(gaps.mean()), float(low), float(high), min(1.0, float(2 * (beyond + 1) / (_DRAWS + 1)))
    )


def _resampled(gaps: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Means of draws of seeds and questions, float64 [draws]."""
    seeds, questions = gaps.shape
    rows = rng.integers(seeds, size=(draws, seeds, 1))
    columns = rng.integers(questions, size=(draws, 1, questions))
    means: np.ndarray = gaps[rows, columns].mean(axis=(1, 2))
    return means


def _students_difference(gaps: np.ndarray) -> Difference:
    found, error = mean_over_seeds(gaps[:, None]), _standard_error(gaps)
    if error == 0:  # the same under every seed: the test is not defined
        return Difference(found.mean, found.low, found.high, None if found.mean else 1.0)
    p = float(2 * stats.t.sf(abs(found.mean) / error, len(gaps) - 1))
    return Difference(found.mean, found.low, found.high, p)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
