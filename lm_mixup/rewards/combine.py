"""Joins the reward components into one reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lm_mixup.config import RewardsConfig, RewardWeights
from lm_mixup.core.task_types import TaskType

Floats = NDArray[np.float64]

_EPSILON = 1e-4


def component_names(config: RewardsConfig) -> tuple[str, ...]:
    """The components of the reward: the four built-in ones, then the custom ones in the config's order."""
    return (*RewardWeights.model_fields, *config.custom)


def weights_of(task_type: TaskType, config: RewardsConfig) -> dict[str, float]:
    """The weight of each component for a task type, in the order of `component_names`. 0.0 stays 0.0.

    Of the built-in ones a task type may have its own whole set, of each custom one its own weight.
    """
    built_in: dict[str, float] = config.task_weights.get(task_type, config.weights).model_dump()
    custom = {name: own.task_weights.get(task_type, own.weight) for name, own in config.custom.items()}
    return built_in | custom


def weight_matrix(task_types: Sequence[TaskType], config: RewardsConfig) -> Floats:
    """The weights of each completion, float64 [C, N], components in the order of `component_names`."""
    by_type = {task_type: weights_of(task_type, config) for task_type in set(task_types)}
    rows = [[by_type[task_type][name] for task_type in task_types] for name in component_names(config)]
    return np.array(rows, dtype=np.float64)


def combine(
    components: Mapping[str, Floats],
    task_types: Sequence[TaskType],
    groups: Sequence[int],
    config: RewardsConfig,
) -> Floats:
    """The total reward of each completion, by the composition of the config.

    Args:
        components: The rewards named by `component_names`, float64 [N] each.
        task_types: [N].
        groups: [N], equal for completions of one prompt.
        config: Weights and composition.

    Returns:
        float64 [N].
    """
    stacked = np.stack([components[name] for name in component_names(config)])
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
