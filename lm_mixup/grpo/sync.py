"""The weights that engines should hold, and the check that they do: both sides score a probe sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Published:
    """The weights the pool should hold, and how it is checked that it does."""

    version: int
    weights: Any
    probe: list[int]
    expected: np.ndarray


class WeightSyncError(RuntimeError):
    """An engine does not hold the weights that the learner published."""


def check_sync(actor: int, published: Published, scored: np.ndarray, tolerance: float) -> float:
    """The largest |Δ log-prob| between an engine's scores of the probe and the learner's.

    Raises:
        WeightSyncError: It is above the tolerance, or not a number.
    """
    difference = float(np.max(np.abs(scored - published.expected)))
    if not difference <= tolerance:
        raise WeightSyncError(
            f"rollout actor {actor} scores the probe {difference:.2e} away from the learner after loading "
            f"weights {published.version} (tolerance {tolerance:.0e}): it would sample from other weights "
            "than are trained. If the model runs in bfloat16, raise grpo.verify_tolerance; else the weight "
            "sync is at fault"
        )
    return difference
