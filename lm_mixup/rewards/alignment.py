"""The alignment reward: how close an answer is to its reference."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

DECIMALS = 5


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row of `a` with the same row of `b`, rounded to 5 decimals.

    The rounding takes away float noise, which depends on the texts that shared an embedder's batch (about
    1e-7): a text compared with itself is 1 and not 0.9999999.

    Args:
        a: L2-normalised, float32 [N, d].
        b: L2-normalised, float32 [N, d].

    Returns:
        float64 [N], in [−1, 1].
    """
    products = np.einsum("nd,nd->n", a.astype(np.float64), b.astype(np.float64))
    return np.clip(np.round(products, DECIMALS), -1.0, 1.0)


def alignment_reward(
    similarity: NDArray[np.float64], mode: Literal["threshold", "continuous"], threshold: float
) -> NDArray[np.float64]:
    """1 from the threshold on, else 0 (paper section 3.3); or the cosine itself, negative ones as 0.

    Args:
        similarity: Cosines of answers and references, float64 [N].
        mode: `threshold` or `continuous`.
        threshold: Least cosine that earns 1; `continuous` does not read it.

    Returns:
        float64 [N], in [0, 1].
    """
    if mode == "continuous":
        return np.maximum(similarity, 0.0)
    return (similarity >= threshold).astype(np.float64)
