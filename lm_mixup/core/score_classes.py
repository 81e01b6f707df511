"""The score classes of ratings (0 to 5), and the Bayes vote over them.

Both the quality reward and score curation infer a row's true class from the scores of its neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]

NUM_CLASSES = 6


def score_histogram(votes: Ints, num_classes: int = NUM_CLASSES) -> Floats:
    """How many votes each class has.

    Args:
        votes: int [N, m] scores in 0 .. K − 1, negative where there is no vote.
        num_classes: K.

    Returns:
        float64 [N, K], rows sum to the number of votes.
    """
    rows = len(votes)
    cells = (np.arange(rows)[:, None] * num_classes + votes.astype(np.int64))[votes >= 0]
    return np.bincount(cells, minlength=rows * num_classes).reshape(rows, num_classes).astype(np.float64)


def posterior(histogram: Floats, transition: Floats, prior: Floats) -> Floats:
    """P(c | votes) = softmax over c of log p[c] + Σ_j histogram[j] · log T[c, j].

    Naive Bayes (LM-mixup, arXiv 2510.20449, section 3.3): votes are independent given the class. The largest
    logit is subtracted before the exponential, so it neither overflows nor divides by zero.

    Args:
        histogram: Votes by score, float64 [N, K].
        transition: T, float64 [K, K], all above 0; `T[c, j]` = P(vote j | class c).
        prior: p, float64 [K], not all 0.

    Returns:
        float64 [N, K], rows sum to 1; the prior where there is no vote.

    Raises:
        ValueError: A transition is not positive, or the prior is zero everywhere.
    """
    if not (transition > 0).all() or not (prior >= 0).all() or not prior.any():
        raise ValueError("transition probabilities must be positive and the prior non-negative, not all zero")
    with np.errstate(divide="ignore"):
        log_prior = np.log(prior)  # −inf for a class without samples: its posterior is exactly 0
    logits = histogram @ np.log(transition).T + log_prior
    logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    probabilities: Floats = weights / weights.sum(axis=1, keepdims=True)
    return probabilities
