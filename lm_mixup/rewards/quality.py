"""The quality reward: a Bayes posterior over score classes from an answer's neighbours in a rated library.

Pure functions; K score classes (0 to 5). Source: LM-mixup (arXiv 2510.20449), section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_mixup.core.score_classes import NUM_CLASSES, posterior, score_histogram

Floats = NDArray[np.float64]
Embeddings = NDArray[np.float32]
Indices = NDArray[np.int64]

HIGH_CLASS, HIGH_REWARD = 4, 1.0
MIDDLE_CLASS, MIDDLE_REWARD = 3, 0.3
_RESOLUTION = 1e5
_BLOCK_CELLS = 1 << 23
_NOT_A_NEIGHBOR = np.iinfo(np.int64).min


@dataclass(frozen=True)
class TaskLibrary:
    """The rated samples of one task type, with the statistics of their neighbourhoods.

    Attributes:
        embeddings: L2-normalized, float32 [N, d].
        scores: int64 [N], in 0 .. K − 1.
        transition: T, float64 [K, K]; `T[c, j]` = P(a neighbour has score j | the sample has score c).
        prior: p, float64 [K]; 0 for a class without samples.
    """

    embeddings: Embeddings
    scores: Indices
    transition: Floats
    prior: Floats


def nearest(
    queries: Embeddings, bank: Embeddings, k: int, groups: tuple[Indices, Indices] | None = None
) -> Indices:
    """The k rows of the bank with the largest cosine, exact, nearest first.

    Unlike `core.nearest`, cosines are compared at a resolution of 1e-5, which is above an embedder's float
    noise, and ties go to the lower index: rewards must not depend on which texts were embedded together.
    Queries are processed in blocks to bound memory.

    Args:
        queries: L2-normalized, float32 [M, d].
        bank: L2-normalized, float32 [N, d].
        k: Neighbours per query.
        groups: Group of each query and of each bank row, int64 [M] and [N]; a query has no neighbours in its
            own group.

    Returns:
        int64 [M, min(k, N)]; −1 at the end of a row with fewer neighbours.
    """
    size = len(bank)
    k = min(k, size)
    found = np.empty((len(queries), k), dtype=np.int64)
    step = max(1, _BLOCK_CELLS // size)
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        cosines = queries[block] @ bank.T
        # One integer per pair, larger is nearer, all different: cosine first, then the lower index.
        keys = np.round(cosines * _RESOLUTION).astype(np.int64) * size - np.arange(size)
        if groups is not None:
            keys[groups[0][block, None] == groups[1][None, :]] = _NOT_A_NEIGHBOR
        top = np.argpartition(keys, size - k, axis=1)[:, size - k :]
        near = np.take_along_axis(keys, top, axis=1)
        top[near == _NOT_A_NEIGHBOR] = -1
        found[block] = np.take_along_axis(top, np.argsort(near, axis=1)[:, ::-1], axis=1)
    return found


def estimate_transition(scores: Indices, neighbors: Indices, smoothing: float) -> tuple[Floats, Floats]:
    """Transition matrix and prior from the library's own nearest neighbours.

    With n[c, j] the number of pairs of a sample of score c and a neighbour of score j,
    T[c, j] = (n[c, j] + s) / Σ_j (n[c, j] + s), and p[c] is the share of samples with score c. The smoothing
    s keeps log T finite. The prior is not smoothed: a class without samples has a flat row in T, and with a
    positive prior it would win wherever the neighbours disagree.

    Args:
        scores: int64 [N], N ≥ 1.
        neighbors: int64 [N, k], rows of the library, never the row itself; −1 where there is none.
        smoothing: s > 0.

    Returns:
        T float64 [K, K], rows sum to 1; p float64 [K], sums to 1.

    Raises:
        ValueError: There are no samples, or a score is outside 0 .. K − 1.
    """
    if not len(scores) or scores.min() < 0 or scores.max() >= NUM_CLASSES:
        raise ValueError(f"scores must be one or more of 0 to {NUM_CLASSES - 1}")
    pairs = (scores[:, None] * NUM_CLASSES + scores[neighbors])[neighbors >= 0]
    counts = np.bincount(pairs, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES) + smoothing
    transition: Floats = counts / counts.sum(axis=1, keepdims=True)
    prior: Floats = np.bincount(scores, minlength=NUM_CLASSES) / len(scores)
    return transition, prior


def make_library(
    embeddings: Embeddings, scores: Indices, groups: Indices, prior_neighbors: int, smoothing: float
) -> TaskLibrary:
    """A task type's library from its embedded and rated samples.

    Neighbours are counted outside a sample's own group. A group holds a high-quality sample and its degraded
    variants: they are each other's nearest neighbours but differ in score, so T would say that good samples
    have poor neighbours. A completion to be scored has no such siblings in the library.

    Args:
        embeddings: L2-normalized, float32 [N, d].
        scores: int64 [N].
        groups: int64 [N], equal for samples about the same thing.
        prior_neighbors: Neighbours counted per sample.
        smoothing: See `estimate_transition`.
    """
    neighbors = nearest(embeddings, embeddings, prior_neighbors, (groups, groups))
    transition, prior = estimate_transition(scores, neighbors, smoothing)
    return TaskLibrary(embeddings, scores, transition, prior)


def quality_reward(probabilities: Floats) -> Floats:
    """1.0 when the most probable class is 4 or above, 0.3 when it is 3, else 0 (paper section 3.3).

    The class decides, not the expected score: near certainty of class 4 has an expectation of 3.99999999998,
    which is below 4. Ties go to the lower class.

    Args:
        probabilities: float64 [N, K].

    Returns:
        float64 [N].
    """
    best = probabilities.argmax(axis=1)
    return np.where(best >= HIGH_CLASS, HIGH_REWARD, np.where(best == MIDDLE_CLASS, MIDDLE_REWARD, 0.0))


def score_answers(
    answers: Embeddings, library: TaskLibrary, k: int, groups: tuple[Indices, Indices] | None = None
) -> Floats:
    """The quality reward of embedded answers of one task type.

    Args:
        answers: L2-normalized, float32 [M, d].
        library: The rated samples of their task type.
        k: Number of neighbours that vote.
        groups: As for `nearest`.

    Returns:
        float64 [M].
    """
    neighbors = nearest(answers, library.embeddings, k, groups)
    votes = np.where(neighbors >= 0, library.scores[neighbors], -1)
    return quality_reward(posterior(score_histogram(votes), library.transition, library.prior))


def held_out(library: TaskLibrary, groups: Indices, k: int) -> dict[str, float]:
    """How well the library scores its own N samples if those of the same group (int64 [N]) do not vote.

    Returns:
        `agreement`: the share of samples whose quality reward equals that of their own score. `separation`:
        mean reward of samples of class 4 and above minus that of the others, 1 at best, 0 at random; absent
        if there is only one kind.
    """
    given = score_answers(library.embeddings, library, k, (groups, groups))
    figures = {"agreement": float(np.mean(given == quality_reward(np.eye(NUM_CLASSES)[library.scores])))}
    high = library.scores >= HIGH_CLASS
    if high.any() and not high.all():
        figures["separation"] = float(given[high].mean() - given[~high].mean())
    return figures
