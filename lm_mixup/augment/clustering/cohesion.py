"""The bounds of a cluster, and measures of its cohesion computed from cosines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESIDUAL = -1


@dataclass(frozen=True)
class Bounds:
    """The bounds of a cluster.

    Attributes:
        min_size: Fewest rows.
        max_size: Most rows.
        min_similarity: Lowest mean cosine of a row to the other rows of its cluster. It also bounds the
            cosine to the centre and to the nearest row. A bound on the cosine to the centre would accept two
            orthogonal rows as a pair, at 0.71.
    """

    min_size: int
    max_size: int
    min_similarity: float

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(
                f"bounds need 1 <= min_size <= max_size, not {self.min_size} and {self.max_size}"
            )


def clusters_of(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each cluster, in ascending order."""
    order, starts = _runs(labels)
    return np.split(order, starts[1:]) if len(order) else []


@dataclass(frozen=True)
class Clusters:
    """Clusters as rows of a table, with the similarities of their members.

    Attributes:
        members: int64 [k, s], rows, s the largest size; row 0 where none is held.
        held: bool [k, s], which places are taken.
        sums: float32 [k, s], a row's cosines to all rows of its cluster, itself included, added up.
        own: float32 [k, s], a row's cosine to itself, 1 but for rounding.
    """

    members: np.ndarray
    held: np.ndarray
    sums: np.ndarray
    own: np.ndarray

    @classmethod
    def measure(cls, gram: np.ndarray, members: np.ndarray, held: np.ndarray) -> Clusters:
        """Sums the cosines within clusters given as a table; gram is float32 [n, n]."""
        within = gram[members[:, :, None], members[:, None, :]]
        within *= held[:, :, None] & held[:, None, :]
        return cls(members, held, within.sum(axis=2), np.einsum("kss->ks", within).copy())

    @classmethod
    def of_labels(cls, gram: np.ndarray, labels: np.ndarray) -> Clusters:
        """The clusters of labels without gaps (int64 [n], −1 for the residual), members ascending."""
        order, starts = _runs(labels)
        sizes = np.diff(starts, append=len(order))
        held = np.arange(sizes.max(initial=0)) < sizes[:, None]
        members = np.zeros(held.shape, dtype=np.int64)
        members[held] = order
        return cls.measure(gram, members, held)

    @property
    def sizes(self) -> np.ndarray:
        """int64 [k]."""
        return self.held.sum(axis=1)

    @property
    def kinship(self) -> np.ndarray:
        """float32 [k, s]: mean cosine to the other rows of the cluster; inf for a row alone, or none."""
        others = (self.held.sum(axis=1, keepdims=True) - 1).astype(np.float32)
        mean = (self.sums - self.own) / np.maximum(others, 1)
        return np.where(self.held & (others > 0), mean, np.float32(np.inf))

    @property
    def lengths(self) -> np.ndarray:
        """float32 [k]: of the sum of a cluster's rows, which is the sum of their cosines to its centre."""
        return np.sqrt(np.maximum(self.sums.sum(axis=1), 0))


def kinship_of(gram: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float32 [n]: mean cosine of each row to the other rows of its cluster; inf for a row without others."""
    kinship = np.full(len(labels), np.inf, dtype=np.float32)
    clusters = Clusters.of_labels(gram, renumber(labels))
    kinship[clusters.members[clusters.held]] = clusters.kinship[clusters.held]
    return kinship


def centre_cosines(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float32 [n]: the cosine of each row to the mean of its cluster; NaN for the residual."""
    cosines = np.full(len(vectors), np.nan, dtype=np.float32)
    order, starts = _runs(labels)
    if len(order):
        rows = vectors[order]
        centres = np.add.reduceat(rows, starts, axis=0)
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        centre = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
        cosines[order] = np.einsum("nd,nd->n", rows, centres[centre])
    return cosines


def renumber(labels: np.ndarray) -> np.ndarray:
    """Cluster numbers without gaps; the residual stays −1."""
    kept = labels >= 0
    result = np.full(len(labels), RESIDUAL, dtype=np.int64)
    result[kept] = np.unique(labels[kept], return_inverse=True)[1]
    return result


def _runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clustered rows by cluster, and where each cluster begins among them."""
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    return order, np.flatnonzero(np.diff(labels[order], prepend=RESIDUAL))
