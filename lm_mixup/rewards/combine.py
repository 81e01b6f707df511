"""Joins the reward components into one reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lm_mixup.config import RewardsConfig, RewardWeights
from lm_mixup.tasks import TaskType

Floats = NDArray[np.float64]

COMPONENTS = ("quality", "alignment", "format")
_EPSILON = 1e-4


def weights_of(task_type: TaskType, config: RewardsConfig) -> RewardWeights:
    """The weights of a task type: its own set where there is one, else the general one. 0.0 stays 0.0."""
    return config.task_weights.get(task_type, config.weights)


def weight_matrix(task_types: Sequence[TaskType], config: RewardsConfig) -> Floats:
    """The weights of each completion, float64 [C, N], components in the order of `COMPONENTS`."""
    weights = [weights_of(task_type, config) for task_type in task_types]
    return np.array([[getattr(w, name) for w in weights] for name in COMPONENTS], dtype=np.float64)


def combine(
    components: Mapping[str, Floats],
    task_types: Sequence[TaskType],
    groups: Sequence[int],
    config: RewardsConfig,
) -> Floats:
    """The total reward of each completion, by the composition of the config.

    Args:
        components: The rewards named in `COMPONENTS`, float64 [N] each.
        task_types: [N].
        groups: [N], equal for completions of one prompt.
        config: Weights and composition.

    Returns:
        float64 [N].
    """
    stacked = np.stack([components[name] for name in COMPONENTS])
    weights = weight_matrix(task_types, config)
    if config.composition == "weighted_sum":
        return weighted_sum(stacked, weights)
    return normalize_then_sum(stacked, weights, np.asarray(groups))


def weighted_sum(components: Floats, weights: Floats) -> Floats:
    """Σ_c w_c · r_c (paper section 3.3).

    Args:
        components: float64 [C, N].
        weights: float64 [C, N].

    Returns:
        float64 [N].
    """
    total: Floats = (weights * components).sum(axis=0)
    return total


def normalize_then_sum(components: Floats, weights: Floats, groups: NDArray[np.int64]) -> Floats:
    """Each component normalised inside its group first: Σ_c w_c · (r_c − mean_g) / (std_g + ε).

    So a component with a small range counts as its weight says (GDPO, arXiv 2601.05242). The total has mean 0
    in every group, and a component that does not differ inside a group adds nothing there.

    Args:
        components: float64 [C, N].
        weights: float64 [C, N].
        groups: int [N]; the completions of a group need not stand together.

    Returns:
        float64 [N].
    """
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    normalized = np.empty_like(components)
    for row, values in enumerate(components):
        centered = values - (np.bincount(index, weights=values) / counts)[index]
        variance = np.bincount(index, weights=centered**2) / np.maximum(counts - 1, 1)
        normalized[row] = centered / (np.sqrt(variance) + _EPSILON)[index]
    return weighted_sum(normalized, weights)
