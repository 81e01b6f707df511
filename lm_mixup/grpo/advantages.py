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
    """The advantage of every completion; each token of a completion has its completion's.

    Args:
        rewards: Total rewards, float64 [G, n], n ≥ 2.
        estimator: Which baseline and scale, see the function of that name.
        components: Single rewards, float64 [C, G, n]; `gdpo` alone reads them.
        weights: Weights of the components, float64 [C], or [C, G] where they differ by group (by task type).
        epsilon: Added to a standard deviation before it divides.

    Returns:
        float64 [G, n].

    Raises:
        ValueError: The shapes do not fit, a reward is not finite, or `gdpo` lacks components or weights.
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
    """(r − mean) / (std + ε) inside each group (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: float64 [..., n].
        epsilon: Keeps a group without spread at zero.

    Returns:
        float64 [..., n].
    """
    return dr_grpo(rewards) / (rewards.std(axis=-1, ddof=1, keepdims=True) + epsilon)


def dr_grpo(rewards: Floats) -> Floats:
    """Reward − mean inside each group, not divided by the spread (Dr. GRPO, arXiv 2503.20783, section 3.2).

    Dividing would weigh groups that are nearly all right or all wrong above the others.

    Args:
        rewards: float64 [..., n].

    Returns:
        float64 [..., n].
    """
    return rewards - rewards.mean(axis=-1, keepdims=True)


def rloo(rewards: Floats) -> Floats:
    """Reward − mean of the group's other rewards (REINFORCE leave-one-out, arXiv 2402.14740).

    Equal to n / (n − 1) · (r − mean), which is how it is computed.

    Args:
        rewards: float64 [..., n].

    Returns:
        float64 [..., n].
    """
    n = rewards.shape[-1]
    return dr_grpo(rewards) * (n / (n - 1))


def reinforce_plus_plus(rewards: Floats, epsilon: float = EPSILON) -> Floats:
    """Group-mean baseline, then one normalisation over the batch (REINFORCE++-baseline, arXiv 2501.03262).

    Args:
        rewards: float64 [G, n].
        epsilon: Added to the batch's standard deviation.

    Returns:
        float64 [G, n], mean 0 over the batch.
    """
    return _normalize_batch(dr_grpo(rewards), epsilon)


def gdpo(components: Floats, weights: Floats, epsilon: float = EPSILON) -> Floats:
    """Each component normalised inside its group, summed with weights, normalised over the batch.

    Totals that are equal by chance keep the differences of their parts (GDPO, arXiv 2601.05242).

    Args:
        components: float64 [C, G, n].
        weights: float64 [C] or [C, G].
        epsilon: Added to each standard deviation.

    Returns:
        float64 [G, n], mean 0 over the batch.

    Raises:
        ValueError: The shapes do not fit or a component is not finite.
    """
    _check(components)
    if weights.shape not in (components.shape[:1], components.shape[:2]):
        raise ValueError(
            f"weights {weights.shape} do not fit components {components.shape}; give [C] or [C, G]"
        )
    shaped = weights.reshape(len(weights), -1, 1)  # [C, 1 or G, 1]
    return _normalize_batch((shaped * grpo(components, epsilon)).sum(axis=0), epsilon)


def zero_signal_groups(rewards: Floats, tolerance: float = 1e-6) -> NDArray[np.bool_]:
    """Which groups carry no signal: their rewards do not differ.

    The spread decides and never the mean: a group of equal rewards teaches nothing whether they are 0, 0.35
    or 1, and a group whose mean is 0 may teach much. The tolerance is there because rewards are continuous.
    Under `gdpo` equal totals may hide components that differ: pass its advantages in place of the rewards.

    Args:
        rewards: float64 [G, n].
        tolerance: Largest standard deviation that counts as none.

    Returns:
        bool [G], true where there is no signal.
    """
    _check(rewards)
    spread: Floats = rewards.std(axis=-1, ddof=1)
    return spread <= tolerance


def _normalize_batch(advantages: Floats, epsilon: float) -> Floats:
    return (advantages - advantages.mean()) / (advantages.std(ddof=1) + epsilon)


def _check(rewards: Floats) -> None:
    if rewards.ndim < 2 or rewards.shape[-1] < 2:
        raise ValueError(
            f"rewards must be [groups, completions] with two completions or more, not {rewards.shape}"
        )
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite; a failed reward has no advantage")
