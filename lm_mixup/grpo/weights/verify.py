"""The weights that engines should hold, and the checks that they do.

Both sides score a probe sequence: an engine that was given the weights wrongly is far off. Weights that never
arrived need not be: a step at the paper's learning rate moves the probe less than rounding does in bfloat16.
So both sides digest their weights too, and what engines hold must change if, and only if, what is sent does.
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
    """The weights the pool should hold, and what the learner makes of the probe with them.

    Attributes:
        version: Of the weights.
        weights: `InStore` or `OnDevice`.
        probe: Token ids [T].
        expected: float32 [T − 1], the learner's log-probs of the probe.
    """

    version: int
    weights: Any
    probe: list[int]
    expected: np.ndarray


@dataclass(frozen=True)
class Held:
    """What an engine holds.

    Attributes:
        logps: float32 [T − 1], its log-probs of the probe.
        digest: Of its weights, laid out as it lays them out: equal in engines of a pool, no other's.
        whole: Whether that is of all of them: on CPU vLLM packs those of linear layers out of sight.
        dtype: Of its weights and activations.
    """

    logps: np.ndarray
    digest: str
    whole: bool
    dtype: str


@dataclass(frozen=True)
class Digests:
    """Digests after a publication: of what the learner sent, and of what every engine holds."""

    sent: str
    held: str


class WeightSyncError(RuntimeError):
    """An engine does not hold the weights that the learner published."""


class WeightDigest:
    """Digests tensors as they pass by, on their own device."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def of(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields what it is given."""
        import torch

        for name, tensor in tensors:
            self._hash.update(name.encode() + torch.hash_tensor(tensor.detach()).cpu().numpy().tobytes())
            yield name, tensor

    def hexdigest(self) -> str:
        """Of the tensors that have passed by."""
        return self._hash.hexdigest()


def model_digest(model: torch.nn.Module) -> tuple[str, bool]:
    """The digest of a model's parameters, and whether it is of all of them: none was empty."""
    parameters = dict(model.named_parameters())
    seen = {name: parameter for name, parameter in parameters.items() if parameter.numel()}
    digest = WeightDigest()
    deque(digest.of(seen.items()), maxlen=0)
    return digest.hexdigest(), len(seen) == len(parameters)


def check_probe(actor: int, published: Published, held: Held, tolerance: float | None) -> float:
    """The mean |Δ log-prob| between an engine's scores of the probe and the learner's.

    Args:
        actor: The engine's place in the pool.
        published: What it should hold.
        held: What it holds.
        tolerance: Largest difference; None: by dtype.

    Raises:
        RuntimeError: The learner's own scores are no numbers: its weights are none.
        WeightSyncError: The difference is above the tolerance, or not a number.
    """
    if not np.isfinite(published.expected).all():
        raise RuntimeError(
            f"the policy's weights {published.version} are no numbers any more: lower grpo.learning_rate"
        )
    by_dtype = _FLOAT32_TOLERANCE if held.dtype == "float32" else _LOW_PRECISION_TOLERANCE
    limit = by_dtype if tolerance is None else tolerance
    difference = float(np.mean(np.abs(held.logps - published.expected)))
    if not difference <= limit:
        raise WeightSyncError(
            f"rollout actor {actor} scores the probe {difference:.2e} nats a token away from the learner "
            f"after loading weights {published.version} (grpo.verify_tolerance {limit:.0e} in {held.dtype}): "
            "it would sample from other weights than are trained"
        )
    return difference


def check_digests(version: int, sent: str, held: Sequence[Held], before: Digests | None) -> Digests:
    """Whether engines hold one and the same, which changed if, and only if, what was sent did.

    Args:
        version: Of the weights.
        sent: Digest of what the learner sent.
        held: What each engine holds.
        before: The digests of the last publication, if there was one.

    Returns:
        The digests of this one.

    Raises:
        WeightSyncError: It is not so.
    """
    now = Digests(sent, held[0].digest)
    what = ""
    if len({each.digest for each in held}) > 1:
        what = "different ones"
    elif before is not None and now.held != before.held and now.sent == before.sent:
        what = "others than before, though none were sent"
    elif before is not None and now.held == before.held and now.sent != before.sent and held[0].whole:
        what = "the same as before"
    if what:
        raise WeightSyncError(
            f"after loading weights {version} rollout actors hold {what}: the weight sync is at fault. Try "
            "another grpo.weight_transport"
        )
    return now
