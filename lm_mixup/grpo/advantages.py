"""Advantages of grouped completions: pure functions of the rewards.

G groups (prompts) of n completions each. Standard deviations, inside a group and over the batch, are the
sample ones (n − 1), as in the common trainers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Estimator = Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "gdpo"]

EPSILON = 1e-4


def group_advantages(
    rewards: Floats,
    estimator: Estimator,
    components: Floats | None = None,
    weights: Floats | None = None,
    epsilon: float = EPSILON,
) -> Floats:
    """The advantage of every completion, shared by all tokens of the completion.

    Args:
        rewards: Total rewards, float64 [G, n], n ≥ 2.
        estimator: Baseline and scale; see the function of that name.
        components: Reward components, float64 [C, G, n]; only `gdpo` reads them.
        weights: Of the components, float64 [C], or [C, G] if they differ by group (by task type).
        epsilon: Added to a standard deviation before dividing by it.

    Returns:
        float64 [G, n].

    Raises:
        ValueError: Shapes do not match, a reward is not finite, or `gdpo` has no components or weights.
    """
    _check(rewards)
    if estimator == "gdpo":
        if components is None or weights is None:
            raise ValueError("gdpo needs the reward components and their weights")
        if components.ndim != 3 or components.shape[1:] != rewards.shape:
            raise ValueError(f"components {components.shape} do not fit rewards {rewards.shape}")
        return gdpo(components, weights, epsilon)
    single: dict[Estimator, Callable[[], Floats]] = {
        "grpo": lambda: grpo(rewards, epsilon),
        "dr_grpo": lambda: dr_grpo(rewards),
        "rloo": lambda: rloo(rewards),
        "reinforce_plus_plus": lambda: reinforce_plus_plus(rewards, epsilon),
    }
    if estimator not in single:
        raise ValueError(f"unknown estimator {estimator!r}; valid are {[*single, 'gdpo']}")
    return single[estimator]()


def grpo(rewards: Floats, epsilon: float = EPSILON) -> Floats:
    """(r − mean) / (std + ε) within each group (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    Rewards and advantages are float64 [..., n]. ε keeps a zero-std group at zero.
    """
    return dr_grpo(rewards) / (rewards.std(axis=-1, ddof=1, keepdims=True) + epsilon)


def dr_grpo(rewards: Floats) -> Floats:
    """Reward − mean within each group, without division by the std (Dr. GRPO, arXiv 2503.20783, section 3.2).

    Dividing would give more weight to groups that are nearly all right or all wrong. float64 [..., n].
    """
    return rewards - rewards.mean(axis=-1, keepdims=True)


def rloo(rewards: Floats) -> Floats:
    """Reward − mean of the group's other rewards (REINFORCE leave-one-out, arXiv 2402.14740).

    Computed as n / (n − 1) · (r − mean), which is equal. float64 [..., n].
    """
    n = rewards.shape[-1]
    return dr_grpo(rewards) * (n / (n - 1))


def reinforce_plus_plus(rewards: Floats, epsilon: float = EPSILON) -> Floats:
    """Group-mean baseline, then normalization over the batch (REINFORCE++-baseline, arXiv 2501.03262).

    Rewards and advantages are float64 [G, n]; the advantages have mean 0 over the batch.
    """
    return _normalize_batch(dr_grpo(rewards), epsilon)


def gdpo(components: Floats, weights: Floats, epsilon: float = EPSILON) -> Floats:
    """Components normalized within their group, summed with weights, normalized over the batch.

    Totals that tie by chance keep the differences of their components (GDPO, arXiv 2601.05242).

    Args:
        components: float64 [C, G, n].
        weights: float64 [C] or [C, G].
        epsilon: Added to each standard deviation.

    Returns:
        float64 [G, n], mean 0 over the batch.

    Raises:
        ValueError: Shapes do not match or a component is not finite.
    """
    _check(components)
    if weights.shape not in (components.shape[:1], components.shape[:2]):
        raise ValueError(
            f"weights {weights.shape} do not fit components {components.shape}; give [C] or [C, G]"
        )
    shaped = weights.reshape(len(weights), -1, 1)  # [C, 1 or G, 1]
    return _normalize_batch((shaped * grpo(components, epsilon)).sum(axis=0), epsilon)


def zero_std_groups(rewards: Floats, tolerance: float = 1e-6) -> NDArray[np.bool_]:
    """Which groups have rewards that do not differ, and therefore no gradient.

    The standard deviation decides, never the mean: equal rewards give no gradient whether they are 0, 0.35 or
    1, and a group of mean 0 may give a large one. Rewards are continuous, hence the tolerance. Under `gdpo`
    equal totals may hide components that differ: pass its advantages instead of the rewards.

    Args:
        rewards: float64 [G, n].
        tolerance: Largest standard deviation that counts as zero.

    Returns:
        bool [G].
    """
    _check(rewards)
    spread: Floats = rewards.std(axis=-1, ddof=1)
    return spread <= tolerance


def _normalize_batch(advantages: Floats, epsilon: float) -> Floats:
    return (advantages - advantages.mean()) / (advantages.std(ddof=1) + epsilon)


def _check(rewards: Floats) -> None:
    if rewards.ndim < 2 or rewards.shape[-1] < 2:
        raise ValueError(
            f"rewards must be [groups, completions] with at least two completions, not {rewards.shape}"
        )
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite; a failed reward has no advantage")
