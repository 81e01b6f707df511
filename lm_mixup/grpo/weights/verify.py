"""Checks that engines hold the weights the learner published.

Both sides score a probe sequence: an engine with wrongly loaded weights is far off. Weights that never
arrived need not be, because a step at the paper's learning rate moves the probe less than bfloat16 rounding
does. So both sides also hash their weights: the engines' digests must change if, and only if, the learner's
does.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

# Of the probe's mean |Δ log-prob|. With equal weights in bfloat16, engine and learner are 0.04 to 0.05 apart.
_FLOAT32_TOLERANCE, _LOW_PRECISION_TOLERANCE = 1e-4, 0.2


@dataclass(frozen=True)
class Published:
    """The weights the pool should hold, and the learner's log-probs of the probe with them.

    Attributes:
        version: Of the weights.
        weights: `StoredWeights` or `DeviceWeights`.
        probe: Token ids [T].
        expected: float32 [T − 1], the learner's log-probs of the probe.
    """

    version: int
    weights: Any
    probe: list[int]
    expected: np.ndarray


@dataclass(frozen=True)
class EngineState:
    """What an engine reports after a weight sync.

    Attributes:
        logps: float32 [T − 1], its log-probs of the probe.
        digest: Of its weights in the engine's own layout: comparable between engines, not with the learner.
        whole: Whether the digest covers all weights: on CPU vLLM repacks those of linear layers out of reach.
        dtype: Of its weights and activations.
    """

    logps: np.ndarray
    digest: str
    whole: bool
    dtype: str


@dataclass(frozen=True)
class Digests:
    """Digests after a weight sync: of what the learner sent, and of what every engine holds."""

    sent: str
    held: str


class WeightSyncError(RuntimeError):
    """An engine does not hold the weights that the learner published."""


class WeightDigest:
    """Hashes tensors of a stream, each on its own device."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def of(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the tensors unchanged."""
        import torch

        for name, tensor in tensors:
            self._hash.update(name.encode() + torch.hash_tensor(tensor.detach()).cpu().numpy().tobytes())
            yield name, tensor

    def hexdigest(self) -> str:
        """The digest of the tensors yielded so far."""
        return self._hash.hexdigest()


def model_digest(model: torch.nn.Module) -> tuple[str, bool]:
    """The digest of a model's parameters, and whether it covers all of them (none was empty)."""
    parameters = dict(model.named_parameters())
    seen = {name: parameter for name, parameter in parameters.items() if parameter.numel()}
    digest = WeightDigest()
    deque(digest.of(seen.items()), maxlen=0)
    return digest.hexdigest(), len(seen) == len(parameters)


def check_probe(actor: int, published: Published, state: EngineState, tolerance: float | None) -> float:
    """The mean |Δ log-prob| between an engine's scores of the probe and the learner's.

    Args:
        actor: The engine's place in the pool.
        published: What it should hold.
        state: What it reports.
        tolerance: Largest difference allowed; None: depends on the dtype.

    Raises:
        RuntimeError: The learner's own log-probs are not finite, so its weights are not either.
        WeightSyncError: The difference is above the tolerance, or NaN.
    """
    if not np.isfinite(published.expected).all():
        raise RuntimeError(
            f"the policy's weights {published.version} are not finite: training has diverged; "
            "lower grpo.learning_rate"
        )
    by_dtype = _FLOAT32_TOLERANCE if state.dtype == "float32" else _LOW_PRECISION_TOLERANCE
    limit = by_dtype if tolerance is None else tolerance
    difference = float(np.mean(np.abs(state.logps - published.expected)))
    if not difference <= limit:
        raise WeightSyncError(
            f"rollout actor {actor} differs from the learner by {difference:.2e} nats per token on the "
            f"probe after loading weights {published.version} (grpo.verify_tolerance {limit:.0e} in "
            f"{state.dtype}): it would sample from other weights than the trained ones"
        )
    return difference


def check_digests(version: int, sent: str, states: Sequence[EngineState], before: Digests | None) -> Digests:
    """Checks that all engines hold the same weights, changed if, and only if, what was sent changed.

    Args:
        version: Of the weights.
        sent: Digest of what the learner sent.
        states: What each engine reports.
        before: The digests of the previous weight sync, if there was one.

    Returns:
        The digests of this weight sync.

    Raises:
        WeightSyncError: The engines differ, or changed when nothing was sent, or did not change.
    """
    now = Digests(sent, states[0].digest)
    what = ""
    if len({state.digest for state in states}) > 1:
        what = "different weights"
    elif before is not None and now.held != before.held and now.sent == before.sent:
        what = "other weights than before, although the same were sent"
    elif before is not None and now.held == before.held and now.sent != before.sent and states[0].whole:
        what = "the same weights as before, although others were sent"
    if what:
        raise WeightSyncError(
            f"after loading weights {version} rollout actors hold {what}: the weight sync is broken. Try "
            "another grpo.weight_transport"
        )
    return now
