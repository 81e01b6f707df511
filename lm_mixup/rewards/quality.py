"""The quality reward: a Bayes posterior over score classes from an answer's neighbours in a rated library.

Pure functions; K score classes (0 to 5). Sources: LM-mixup (arXiv 2510.20449) section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Embeddings = NDArray[np.float32]
Indices = NDArray[np.int64]

NUM_CLASSES = 6
HIGH_CLASS, HIGH_REWARD = 4, 1.0
MIDDLE_CLASS, MIDDLE_REWARD = 3, 0.3
_RESOLUTION = 1e5
_BLOCK_CELLS = 1 << 23
_NOT_A_NEIGHBOR = np.iinfo(np.int64).min


@dataclass(frozen=True)
class TaskLibrary:
    """The rated samples of one task type, and what their neighbourhoods say.

    Attributes:
        embeddings: L2-normalised, float32 [N, d].
        scores: int64 [N], in 0 .. K − 1.
        transition: T, float64 [K, K]; `T[c, j]` = P(a neighbour has score j | the sample has score c).
        prior: p, float64 [K]; 0 for a class of which the library has no sample.
    """

    embeddings: Embeddings
    scores: Indices
    transition: Floats
    prior: Floats


def nearest(
    queries: Embeddings, bank: Embeddings, k: int, groups: tuple[Indices, Indices] | None = None
) -> Indices:
    """The k rows of the bank with the largest cosine, exactly, nearest first.

    Cosines are compared at a resolution of 1e-5, below which an embedder's float noise lives, and equal ones
    go to the lower index: so which texts were embedded together does not matter. Memory is bounded, the
    queries are taken in blocks.

    Args:
        queries: L2-normalised, float32 [M, d].
        bank: L2-normalised, float32 [N, d].
        k: Neighbours.
        groups: Group of each query and of each row of the bank, int64 [M] and [N]; a query has no neighbours
            in its own group.

    Returns:
        int64 [M, min(k, N)]; −1 at the end of a row that has fewer neighbours.
    """
    size = len(bank)
    k = min(k, size)
    found = np.empty((len(queries), k), dtype=np.int64)
    for start, stop in _blocks(len(queries), size):
        cosines = queries[start:stop] @ bank.T
        # one integer a pair, larger is nearer, all different: cosine first, then the lower index
        keys = np.round(cosines * _RESOLUTION).astype(np.int64) * size - np.arange(size)
        if groups is not None:
            keys[groups[0][start:stop, None] == groups[1][None, :]] = _NOT_A_NEIGHBOR
        top = np.argpartition(keys, size - k, axis=1)[:, size - k :]
        near = np.take_along_axis(keys, top, axis=1)
        top[near == _NOT_A_NEIGHBOR] = -1
        found[start:stop] = np.take_along_axis(top, np.argsort(near, axis=1)[:, ::-1], axis=1)
    return found


def _blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK_CELLS // columns)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def estimate_transition(
    scores: Indices, neighbors: Indices, smoothing: float, num_classes: int = NUM_CLASSES
) -> tuple[Floats, Floats]:
    """Transition matrix and prior from the library's own nearest neighbours.

    With n[c, j] the number of pairs of a sample of score c and a neighbour of score j,
    T[c, j] = (n[c, j] + s) / Σ_j (n[c, j] + s), and p[c] is the share of the samples with score c. The
    smoothing s keeps every log T finite. The prior is not smoothed: a class without samples has a flat row
    in T, and with a prior above 0 it would win wherever the neighbours disagree.

    Args:
        scores: int64 [N], N ≥ 1.
        neighbors: int64 [N, k], rows of the library, never the row itself; −1 where there is none.
        smoothing: s > 0.
        num_classes: K.

    Returns:
        T float64 [K, K], rows sum to 1; p float64 [K], sums to 1.

    Raises:
        ValueError: There are no samples, or a score is outside 0 .. K − 1.
    """
    if not len(scores) or scores.min() < 0 or scores.max() >= num_classes:
        raise ValueError(f"scores must be one or more of 0 to {num_classes - 1}")
    pairs = (scores[:, None] * num_classes + scores[neighbors])[neighbors >= 0]
    counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes) + smoothing
    transition: Floats = counts / counts.sum(axis=1, keepdims=True)
    prior: Floats = np.bincount(scores, minlength=num_classes) / len(scores)
    return transition, prior


def make_library(
    embeddings: Embeddings, scores: Indices, groups: Indices, prior_neighbors: int, smoothing: float
) -> TaskLibrary:
    """A task type's library from its embedded and rated samples.

    A sample's neighbours are counted outside its own group. A group holds a good sample and its degraded
    variants: they are each other's nearest neighbours and differ in score, which would teach that good
    samples live among poor ones. A completion to be judged has no such siblings in the library.

    Args:
        embeddings: L2-normalised, float32 [N, d].
        scores: int64 [N].
        groups: int64 [N], equal for samples about the same thing.
        prior_neighbors: Neighbours of a sample that are counted.
        smoothing: See `estimate_transition`.
    """
    neighbors = nearest(embeddings, embeddings, prior_neighbors, (groups, groups))
    transition, prior = estimate_transition(scores, neighbors, smoothing)
    return TaskLibrary(embeddings, scores, transition, prior)


def score_histogram(scores: Indices, neighbors: Indices, num_classes: int = NUM_CLASSES) -> Floats:
    """How many neighbours have each score.

    Args:
        scores: Of the library, int64 [N].
        neighbors: Rows of the library, int64 [M, k]; −1 where there is none.
        num_classes: K.

    Returns:
        float64 [M, K], rows sum to the number of neighbours.
    """
    rows = len(neighbors)
    cells = (np.arange(rows)[:, None] * num_classes + scores[neighbors])[neighbors >= 0]
    counts = np.bincount(cells, minlength=rows * num_classes)
    return counts.reshape(rows, num_classes).astype(np.float64)


def posterior(hist: Floats, transition: Floats, prior: Floats) -> Floats:
    """P(c | neighbours) = softmax over c of log p[c] + Σ_j hist[j] · log T[c, j].

    Naive Bayes: the neighbours are taken as independent given the class. The largest logit is subtracted
    before the exponential, so it neither overflows nor divides by zero.

    Args:
        hist: Neighbours by score, float64 [N, K].
        transition: T, float64 [K, K], all above 0.
        prior: p, float64 [K], not all 0.

    Returns:
        float64 [N, K], rows sum to 1.

    Raises:
        ValueError: A transition is not positive, or the prior is zero everywhere.
    """
    if not (transition > 0).all() or not (prior >= 0).all() or not prior.any():
        raise ValueError("transition probabilities must be positive and the prior non-negative, not all zero")
    with np.errstate(divide="ignore"):
        log_prior = np.log(prior)  # −inf for a class without samples: its posterior is exactly 0
    logits = hist @ np.log(transition).T + log_prior
    logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    probabilities: Floats = weights / weights.sum(axis=1, keepdims=True)
    return probabilities


def quality_reward(probabilities: Floats) -> Floats:
    """1.0 when the most probable class is 4 or above, 0.3 when it is 3, else 0 (paper section 3.3).

    The class decides, not the expected score: all but certain of class 4 has an expectation of 3.99999999998,
    which is below 4. Equal probabilities go to the lower class.

    Args:
        probabilities: float64 [N, K].

    Returns:
        float64 [N].
    """
    best = probabilities.argmax(axis=1)
    return np.where(best >= HIGH_CLASS, HIGH_REWARD, np.where(best == MIDDLE_CLASS, MIDDLE_REWARD, 0.0))


def judge(
    answers: Embeddings, library: TaskLibrary, k: int, groups: tuple[Indices, Indices] | None = None
) -> Floats:
    """The quality reward of embedded answers of one task type.

    Args:
        answers: L2-normalised, float32 [M, d].
        library: The rated samples of their task type.
        k: Neighbours that vote.
        groups: As for `nearest`.

    Returns:
        float64 [M].
    """
    hist = score_histogram(library.scores, nearest(answers, library.embeddings, k, groups))
    return quality_reward(posterior(hist, library.transition, library.prior))


def held_out(library: TaskLibrary, groups: Indices, k: int) -> dict[str, float]:
    """How well the library judges its own samples when their groups are out of sight.

    Args:
        library: With N samples.
        groups: int64 [N].
        k: Neighbours that vote.

    Returns:
        `agreement`: the share of samples whose quality reward is the one their own score earns. `separation`:
        mean reward of the samples of class 4 and above less that of the others; 0 tells nothing apart, 1 is
        perfect. It is left out where there is only one kind.
    """
    given = judge(library.embeddings, library, k, (groups, groups))
    figures = {"agreement": float(np.mean(given == quality_reward(np.eye(NUM_CLASSES)[library.scores])))}
    high = library.scores >= HIGH_CLASS
    if high.any() and not high.all():
        figures["separation"] = float(given[high].mean() - given[~high].mean())
    return figures
